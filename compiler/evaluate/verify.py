"""Does a module compute what the model it was compiled from does?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import VerificationError
from compiler.evaluate.compare import Difference, compare_all
from compiler.evaluate.inputs import random_inputs, signature_of
from compiler.module.loader import Module, load, verify_files


@dataclass(frozen=True)
class Check:
    """The module on one set of inputs: where these come from, and who the reference is."""

    inputs: str
    reference: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class VerifyReport:
    """All checks that were made; `notes` says which were not, and why."""

    checks: tuple[Check, ...]
    notes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        return all(d.agrees for check in self.checks for d in check.differences)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "agrees": self.agrees,
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
    progress: Callable[[str, float], None] | None = None,
) -> VerifyReport:
    """Check all digests, the golden vectors, and with `model` also `samples` fresh random inputs.

    Raises ArtifactError if the module is damaged or for another machine, ModelError if
    `model` is not what it was compiled from, VerificationError if nothing at all could
    be compared.
    """
    show = progress or (lambda phase, share: None)
    show("digests", 0.0)
    verify_files(path)
    notes: list[str] = []
    checks: list[Check] = []
    with load(path, threads=threads) as module:
        show("golden vectors", 0.1)
        golden = module.golden()
        if golden is None:
            notes.append("the module has no golden vectors")
        else:
            names = [tensor.name for tensor in module.manifest.outputs]
            expected = dict(zip(names, golden.outputs, strict=True))
            actual = dict(zip(names, module.run(golden.inputs), strict=True))
            found = compare_all(actual, expected, golden.tolerance)
            checks.append(Check("golden vectors", "stored in the module", found))
        if model is None:
            notes.append("not compared on fresh inputs: give the model with --model")
        else:
            fresh, told = _fresh(module, model, samples, seed, threads, show)
            checks += fresh
            notes += told
    if not checks:
        raise VerificationError(f"{path}: nothing to compare with: {'; '.join(notes)}")
    return VerifyReport(tuple(checks), tuple(notes))


def _fresh(
    module: Module,
    model: Path,
    samples: int,
    seed: int,
    threads: int,
    show: Callable[[str, float], None],
) -> tuple[list[Check], list[str]]:
    # Loading a module needs neither onnx nor a reference; only this check does.
    from compiler.evaluate.original import open_original
    from compiler.evaluate.reference import Reference

    show("reference", 0.2)
    original = open_original(model, module.manifest)
    reference = Reference(original.model, original.content, threads)
    signature = signature_of(module.manifest.inputs)
    checks, notes = [], []
    for index in range(samples):
        show("fresh inputs", 0.3 + 0.7 * index / samples)
        inputs = random_inputs(signature, original.domains, seed + index)
        expected = reference.run(inputs)
        # After the reference: what ends its process must not end this one.
        settled = reference.settle(inputs, module(inputs), expected)
        checks.append(Check(f"random, seed {seed + index}", settled.label, settled.differences))
        notes += [settled.note] if settled.note else []
    return checks, [*reference.notes, *notes]
