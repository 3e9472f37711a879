"""Does a module compute what the model it was compiled from does?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinsmith.compiler.errors import VerificationError
from tinsmith.compiler.evaluate.compare import Difference, compare_all
from tinsmith.compiler.evaluate.float_model import Distance, judge
from tinsmith.compiler.evaluate.inputs import random_inputs, signature_of
from tinsmith.compiler.module.golden import GoldenVectors
from tinsmith.compiler.module.loader import Module, load, verify_files
from tinsmith.passes.progress import Progress

# Fields of the reports of quantisation and pruning, the former's last word.
_REPORTED = ("output_sqnr_db", "agreement", "samples", "top1", "float_top1")


@dataclass(frozen=True)
class Check:
    """The module on one set of inputs: where these come from, and who the reference is."""

    inputs: str
    reference: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class FloatCheck:
    """A quantised or pruned module beside the float model on one set of inputs."""

    inputs: str
    reference: str
    distances: tuple[Distance, ...]


@dataclass(frozen=True)
class VerifyReport:
    """All checks that were made; `notes` says which were not, and why.

    `checks` compare the module with what it should compute itself; `float_checks` with the float
    model that a quantised or pruned one was made of, `reduced` says what was done to it, and
    `report` what the compilation found out on all samples (`_REPORTED`).
    """

    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    float_checks: tuple[FloatCheck, ...] = ()
    reduced: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        own = all(d.agrees for check in self.checks for d in check.differences)
        kept = (d.agrees for check in self.float_checks for d in check.distances)
        return own and all(agrees is not False for agrees in kept)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "agrees": self.agrees,
            "reduced": self.reduced or None,
            "report": dict(self.report),
            "float_model": [
                {
                    "inputs": check.inputs,
                    "reference": check.reference,
                    "outputs": [distance.to_dict() for distance in check.distances],
                }
                for check in self.float_checks
            ],
            "checks": [
                {
                    "inputs": check.inputs,
                    "reference": check.reference,
                    "outputs": [difference.to_dict() for difference in check.differences],
                }
                for check in self.checks
            ],
            "notes": list(self.notes),
        }


def verify(
    path: Path,
    model: Path | None = None,
    samples: int = 3,
    seed: int = 1,
    threads: int = 2,
    progress: Progress | None = None,
    level: str | None = None,
) -> VerifyReport:
    """Check all digests, the golden vectors, and with `model` also `samples` fresh random inputs.

    Of a module for several targets `level` is run, or the best that this machine runs.

    A quantised or pruned module is judged by its own golden vectors, and beside the float `model`
    by what was promised when it was compiled, on its golden input. On random inputs, which are
    not what it was calibrated with, the distance is told and not judged.

    Raises ArtifactError if the module is damaged or for another machine, ModelError if
    `model` is not what it was compiled from, VerificationError if nothing at all could
    be compared.
    """
    show = progress or (lambda phase, share: None)
    show("digests", 0.0)
    verify_files(path)
    notes: list[str] = []
    checks: list[Check] = []
    with load(path, threads=threads, level=level) as module:
        show("golden vectors", 0.1)
        golden_sets = module.golden_sets()
        if not golden_sets:
            notes.append("the module has no golden vectors")
        for golden in golden_sets:
            names = [tensor.name for tensor in module.manifest.outputs]
            expected = dict(zip(names, golden.outputs, strict=True))
            actual = dict(zip(names, module.run(golden.inputs), strict=True))
            found = compare_all(actual, expected, golden.tolerance)
            label = f"golden vectors{_told(_named_sizes(module, golden))}"
            checks.append(Check(label, "stored in the module", found))
        reduced, report = _reduced(module), _reported(module)
        float_checks: list[FloatCheck] = []
        if model is None:
            notes.append("not compared on fresh inputs: give the model with --model")
        else:
            manifest = module.manifest
            tried = [_named_sizes(module, golden) for golden in golden_sets]
            tried = tried if manifest.dims and tried else [manifest.extreme_sizes[0]]
            runs = len(tried) * samples
            for number, sizes in enumerate(tried):
                show("reference", 0.2)
                fresh = _Fresh(module, model, threads, sizes)
                for index in range(samples):
                    show("fresh inputs", 0.3 + 0.7 * (number * samples + index) / runs)
                    label = f"random, seed {seed + index}{_told(sizes)}"
                    inputs = fresh.random(seed + index)
                    if reduced:
                        float_checks.append(fresh.distance(label, inputs, None))
                    else:
                        checks.append(fresh.compare(label, inputs))
                notes += fresh.notes
            if reduced and golden_sets:
                # What was promised is of the largest size.
                golden = golden_sets[-1]
                names = [tensor.name for tensor in manifest.inputs]
                promises = manifest.measured.float_model
                inputs = dict(zip(names, golden.inputs, strict=True))
                fresh = _Fresh(module, model, threads, _named_sizes(module, golden))
                float_checks.insert(0, fresh.distance("golden vectors", inputs, promises))
                if promises is None:
                    notes.append("nothing was promised about the float model: compile again")
    if not checks:
        raise VerificationError(f"{path}: nothing to compare with: {'; '.join(notes)}")
    return VerifyReport(tuple(checks), tuple(notes), tuple(float_checks), reduced, report)


def _named_sizes(module: Module, golden: GoldenVectors) -> dict[str, int]:
    """The sizes of the module's open dimensions for which golden vectors are."""
    names = (dim.name for dim in module.manifest.dims)
    return dict(zip(names, golden.sizes, strict=True))


def _told(sizes: Mapping[str, int]) -> str:
    return "".join(f", {name} {size}" for name, size in sizes.items())


def _reduced(module: Module) -> str:
    """What was done to the model: `int8`, `pruned`, `pruned, int8`; empty for a whole one."""
    config = module.manifest.config
    quantization = config.get("quantization")
    parts = ["pruned"] if config.get("pruning") else []
    parts += [str(quantization.get("format"))] if isinstance(quantization, dict) else []
    return ", ".join(parts)


def _reported(module: Module) -> dict[str, Any]:
    """What the reports of pruning and quantisation say about the distance to the float model."""
    found: dict[str, Any] = {}
    measured = module.manifest.measured
    for report in (measured.pruning, measured.quantization):
        if report is not None:
            found |= {name: report[name] for name in _REPORTED if report.get(name) is not None}
    return found


class _Fresh:
    """A module beside the model that it was compiled from; `notes` tell what was odd.

    Raises ModelError if the model is another one.
    """

    def __init__(self, module: Module, model: Path, threads: int, sizes: Mapping[str, int]) -> None:
        # Loading a module needs neither a front end nor a reference; only this check does.
        from tinsmith.compiler.evaluate.original import open_original

        self._manifest = module.manifest.sized(sizes)
        original = open_original(model, self._manifest)
        self._module = module
        self._domains = original.domains
        self._reference = original.reference(threads)
        self._notes: list[str] = []

    @property
    def notes(self) -> list[str]:
        return [*self._reference.notes, *self._notes]

    def random(self, seed: int) -> dict[str, np.ndarray]:
        """Inputs by name."""
        return random_inputs(signature_of(self._manifest.inputs), self._domains, seed)

    def compare(self, label: str, inputs: dict[str, np.ndarray]) -> Check:
        """Whether the module computes what the model does."""
        expected = self._reference.run(inputs)
        # After the reference: what ends its process must not end this one.
        settled = self._reference.settle(inputs, self._module(inputs), expected)
        self._notes += [settled.note] if settled.note else []
        return Check(label, settled.label, settled.differences)

    def distance(
        self, label: str, inputs: dict[str, np.ndarray], promises: Mapping[str, Any] | None
    ) -> FloatCheck:
        """How far the module is from the model, and whether that keeps the promises."""
        expected = self._reference.run(inputs)
        found = judge(self._module(inputs), expected, promises)
        return FloatCheck(label, self._reference.label, tuple(found))
