"""Which pass, and which tensor, first departs from what the model ought to compute.

The compilation is replayed pass by pass, and the graph after each is run on the same
input. The first graph whose result departs from the reference names the pass; its
tensors are then compared with those of the graph before it. If every graph agrees and
the module does not, the fault lies in code generation, and the tensors of freshly
generated code are compared with those of the last graph.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.errors import ConfigError, ModelError
from tinsmith.compiler.evaluate.compare import Difference, compare_all
from tinsmith.compiler.evaluate.inputs import random_inputs
from tinsmith.compiler.evaluate.stages import Tensor, expose_tensors, run_all_tensors, run_stage
from tinsmith.compiler.frontends.imported import ImportedModel
from tinsmith.compiler.frontends.registry import import_model
from tinsmith.compiler.module.loader import load
from tinsmith.compiler.module.write.lowered import LoweredModel
from tinsmith.compiler.module.write.writer import write_module
from tinsmith.compiler.pipeline import PassRunner, Pipeline, Step, configured
from tinsmith.compiler.preparation import target_of
from tinsmith.compiler.scratch import ScratchFolder
from tinsmith.compiler.tuning.decisions import stored_decisions
from tinsmith.passes.progress import Progress
from tinsmith.targets.spec import TargetSpec

IMPORT = "import"
MODULE = "code generation"
# Of the tensor's range: a tensor that a pass has merely recomputed differs by rounding only.
_SAME = 1e-4
# What passes call values of their own; the numbers mean something else after each.
_NUMBERED = re.compile(r"(t|lv|gv)\d*")


@dataclass(frozen=True)
class Finding:
    """After a pass: the output farthest from the reference; `tensor` is the first to diverge."""

    name: str
    agrees: bool
    relative: float
    tensor: str = ""


@dataclass(frozen=True)
class Bisection:
    """The steps that were replayed, up to and with the first that diverges."""

    reference: str
    steps: tuple[Finding, ...]

    @property
    def first_divergence(self) -> Finding | None:
        """The first step that does not agree, or None."""
        return next((step for step in self.steps if not step.agrees), None)

    def conclusion(self) -> str:
        """One line that says where the divergence begins."""
        step = self.first_divergence
        if step is None:
            return f"no pass diverges from {self.reference}"
        return f"first divergence: {step.name}, tensor {step.tensor or 'unknown'}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        found = self.first_divergence
        return {
            "reference": self.reference,
            "first_divergence": None if found is None else found.name,
            "tensor": None if found is None else found.tensor,
            "steps": [
                {
                    "after": step.name,
                    "agrees": step.agrees,
                    "relative": step.relative if np.isfinite(step.relative) else None,
                }
                for step in self.steps
            ],
        }


def bisect_module(
    path: Path,
    model: Path,
    seed: int = 1,
    progress: Progress | None = None,
) -> Bisection:
    """Replay the compilation of the module in `path` from `model`, and run the module itself.

    Raises ConfigError if the module was meant to compute something else than the model,
    ModelError if the model cannot be run by the reference, ArtifactError if the module is
    damaged or for another machine.
    """
    with load(path) as module:
        manifest = module.manifest.sized(module.manifest.extreme_sizes[1])
        config = CompileConfig.from_dict({**manifest.config, "dump": None})
        if config.quantization is not None or config.pruning is not None:
            raise ConfigError(
                f"--bisect: {manifest.name} is quantised or pruned, so it differs from the model "
                "by design; bisect a module that was compiled without"
            )
        shapes = {t.name: tuple(int(size) for size in t.shape) for t in manifest.inputs}
        imported = import_model(model, shapes, config.constants)
        if imported.output_names != tuple(t.name for t in manifest.outputs):
            raise ModelError(f"{model}: is not the model that {manifest.name} was compiled from")
        if config.log is not None and not config.log.is_dir():
            config = replace(config, log=None)  # that of another machine, or gone by now
        spec = target_of(config)
        known = stored_decisions(config, spec)
        pipeline = configured(config, spec, known.records, known.algorithms)
        return bisect(imported, spec, pipeline, seed, module.run, progress)


def bisect(
    imported: ImportedModel,
    spec: TargetSpec,
    pipeline: Pipeline,
    seed: int,
    run_module: Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]] | None,
    progress: Progress | None = None,
) -> Bisection:
    """Replay `pipeline` on an imported model until a result departs from the reference.

    `run_module` is the compiled module to compare after all steps agree.
    """
    show = progress or (lambda phase, share: None)
    reference = imported.required_reference()
    tolerance = reference.tolerance(*imported.output_dtypes)
    inputs = random_inputs(imported.signature, imported.domains, seed)
    arrays = list(inputs.values())
    expected = reference.run(inputs)
    runner = PassRunner()
    names = _lasting_names(imported)
    steps: list[Finding] = []

    def judge(values: Sequence[np.ndarray]) -> Difference:
        actual = dict(zip(imported.output_names, values, strict=True))
        differences = compare_all(actual, expected, tolerance)
        return max(differences, key=lambda d: (not d.agrees, d.relative))

    module, before = imported.module, None
    worst: Difference | None = None
    for index, (name, apply) in enumerate([Step(IMPORT, _unchanged), *pipeline.steps]):
        show(f"after {name}", index / (len(pipeline.steps) + 2))
        if index:
            before, module = module, runner.run(name, apply, module)
        if worst is None or before is None or not tvm_ffi.structural_equal(before, module):
            worst = judge(run_stage(module, arrays, spec))
        if worst.agrees:
            steps.append(Finding(name, True, worst.relative))
            continue
        show("tensors", 1.0)
        if before is None:
            tensors = reference.tensors(inputs)
            good = [Tensor(name, value) for name, value in tensors.items()]
        else:
            good = run_all_tensors(before, arrays, spec)
        found = first_divergent(good, run_all_tensors(module, arrays, spec), names)
        tensor = found or worst.name
        steps.append(Finding(name, False, worst.relative, tensor))
        return Bisection(reference.label, tuple(steps))
    if run_module is not None:
        show(MODULE, 1.0)
        worst = judge(run_module(inputs))
        tensor = ""
        if not worst.agrees:
            good = run_all_tensors(module, arrays, spec)
            bad = _generated_tensors(imported, module, arrays, spec)
            tensor = first_divergent(good, bad, names)
            tensor = tensor or f"{worst.name} (freshly generated code agrees)"
        steps.append(Finding(MODULE, worst.agrees, worst.relative, tensor))
    return Bisection(reference.label, tuple(steps))


def _unchanged(module: tvm.IRModule) -> tvm.IRModule:
    return module


def _lasting_names(imported: ImportedModel) -> frozenset[str]:
    """The names of the model's tensors: a pass keeps them for what has the same values."""
    return frozenset(name for name in imported.node_names if not _NUMBERED.fullmatch(name))


def first_divergent(
    good: Sequence[Tensor], bad: Sequence[Tensor], names: Collection[str] = ()
) -> str:
    """Name of the tensor of `bad` from which on nothing agrees with what is in `good`.

    A tensor with one of `names` agrees if its namesake in `good` has the same values, in
    any order: a pass may choose another layout. A pass may also compute new values, under
    names of its own: such a tensor agrees if any tensor of `good` has the same values. One
    that does not agree is forgiven when a later one does. Empty if the last one agrees.
    """
    known: dict[int, list[np.ndarray]] = {}
    namesakes: dict[str, np.ndarray] = {}
    for tensor in good:
        values = np.sort(tensor.value, axis=None)
        known.setdefault(values.size, []).append(values)
        if tensor.variable in names:
            namesakes[tensor.variable] = values
    name = ""
    for tensor in reversed(bad):
        values = np.sort(tensor.value, axis=None)
        namesake = namesakes.get(tensor.variable)
        # Of another size it is no longer the same: padded, or a part.
        if namesake is not None and namesake.size == values.size:
            others = [namesake]
        else:
            others = known.get(values.size, [])
        if any(_same(values, other) for other in others):
            break
        name = tensor.name
    return name


def _same(values: np.ndarray, other: np.ndarray) -> bool:
    if other.size == 0:
        return True
    scale = float(np.ptp(other)) or 1.0
    return np.allclose(values, other, rtol=0.0, atol=_SAME * scale, equal_nan=True)


def _generated_tensors(
    imported: ImportedModel, module: tvm.IRModule, arrays: list[np.ndarray], spec: TargetSpec
) -> list[Tensor]:
    """Every tensor of the scheduled graph, as generated code computes it."""
    exposed, names = expose_tensors(module)
    lowered = LoweredModel(
        exposed, spec, imported.input_names, tuple(f"t{i}" for i in range(len(names)))
    )
    with ScratchFolder() as folder:
        written = write_module(lowered, folder / "module", forms=["shared"])
        with load(written.path) as generated:
            values = generated.run(arrays)
    return [Tensor(name, value) for name, value in zip(names, values, strict=True)]
