"""How kernels are made for a family of machines, behind one interface: the compiler knows none.

Imports run one way: spec, template, backend, cpu, then each of x86 and arm, then registry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from tvm.ir import Expr
from tvm.ir.transform import Pass
from tvm.relax import BlockBuilder, Call
from tvm.tirx import PrimFunc

from tinsmith.targets.algorithms import AlgorithmLookup, Algorithms
from tinsmith.targets.number_formats import NumberFormats
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Template

Legalizer = Callable[[BlockBuilder, Call], Expr]


@dataclass(frozen=True)
class Lowering:
    """Passes between TVM's own.

    `unscheduled`: on kernels that no template has scheduled, for TVM's virtual machine.
    `vectorized`: on scheduled loops that have vectors. `last`: right before code is generated.
    """

    unscheduled: tuple[Pass, ...] = ()
    vectorized: tuple[Pass, ...] = ()
    last: tuple[Pass, ...] = ()


class Backend(ABC):
    """What one family makes kernels with; its machines are told by its `Family`.

    `templates` schedule kernels: the first that matches, so the specific ones stand before the
    general ones, and the last matches all. `algorithms` are what a search may choose from.
    """

    formats: ClassVar[NumberFormats]
    templates: ClassVar[tuple[Template, ...]]
    algorithms: ClassVar[Algorithms]

    @abstractmethod
    def legalizers(
        self, spec: TargetSpec, algorithms: AlgorithmLookup | None = None
    ) -> Mapping[str, Legalizer]:
        """Definitions of operators for which there are templates, by operator name.

        `algorithms` knows by which algorithm some operators are computed best; others go by
        a rule.
        """

    @abstractmethod
    def conversions(self) -> Mapping[str, Legalizer]:
        """Definitions of `relax.quantize` and `relax.dequantize`."""

    @abstractmethod
    def finish(self, function: PrimFunc, spec: TargetSpec) -> PrimFunc:
        """What is done to every scheduled kernel: elementary functions, instructions."""

    def flush_denormals(self, function: PrimFunc, spec: TargetSpec) -> PrimFunc:
        """A finished kernel that sums products, with denormal numbers as zeros if they are slow."""
        return function

    @abstractmethod
    def lowering(self) -> Lowering:
        """What the lowering of scheduled kernels to object code takes besides TVM's passes."""

    @abstractmethod
    def is_reproducible(self, function: PrimFunc) -> bool:
        """Whether a fused kernel computes the same bits on every target."""

    def machine_check(self, spec: TargetSpec) -> str:
        """C source that a module needs before its first kernel runs, or nothing.

        It defines `static int machine_refuses(void)`, which answers 0, or that of
        `fail(what, detail)`: it may ask the system for what kernels use, in every process.
        """
        return ""
