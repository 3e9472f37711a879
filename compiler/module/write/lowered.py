"""What the module writer is given: a scheduled model, and all that is to be said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tvm.ir import IRModule

from tinsmith.compiler.dimensions.open_batch import OpenBatch
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import KernelReport


@dataclass(frozen=True)
class LoweredModel:
    """A model whose kernels are fused and scheduled, ready for code generation.

    `module` holds a Relax `main` that calls its PrimFuncs through
    `R.call_tir`; a PrimFunc is either scheduled with sblocks or a plain loop
    nest. `main` takes the model's inputs, in the order of `input_names`, and
    returns its outputs (a tensor or a flat tuple), in the order of
    `output_names`; the weights are constants. `kernels` is keyed to the
    PrimFuncs by `KernelReport.name`; `nodes` names, for each of them, the nodes
    of the model that it computes; `passes` are those that it went through, with the
    seconds of each. `batch` tells how fewer images than the bound are computed,
    where the batch is open. `notes` and `config` are copied into the module's manifest and
    must be plain JSON data.
    """

    module: IRModule
    spec: TargetSpec
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    kernels: tuple[KernelReport, ...] = ()
    source_name: str = "model"
    notes: tuple[str, ...] = ()
    passes: tuple[tuple[str, float], ...] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    nodes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    batch: OpenBatch | None = None
