"""Dependency groups of real models: removing channels must give what zeroing them gives.

Every group that can be pruned loses a random share of its units, once by `zero` in the whole
graph and once by `shrink`; stock TVM runs both on the same random input. Groups where zero
is not the same as removed (statistics of a layer normalisation) stay whole and are listed, as
are frozen groups with the reason. Run as
`python benchmarks/prune_equivalence.py [--models-dir DIR] [--folded] [NAME ...]`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import tvm
from latency import find
from models import random_inputs, relative_error, stock_tvm, with_random_weights
from zoo import CACHE, MODELS, RealModel, find_model

from tinsmith.compiler.errors import TinsmithError
from tinsmith.compiler.frontends.onnx.model import ImportedModel, import_onnx
from tinsmith.compiler.pruning.pruner import readable
from tinsmith.passes.graph import FoldBatchNorm
from tinsmith.passes.prune import Group, Groups, find_groups, shrink, zero

BAR = 1e-5
# In the folder of --models-dir, beside those that `models` knows.
FURTHER = (RealModel("resnet18-cifar10", "", "resnet18_cifar10.onnx"),)


@dataclass(frozen=True)
class Outcome:
    """One model: its groups, why some are left alone, and the largest relative difference."""

    name: str
    groups: int
    pruned: int
    parameters: int
    parameters_left: int
    left_alone: dict[str, str]
    error: float | None

    @property
    def passed(self) -> bool:
        return self.error is None or self.error <= BAR


def graph_of(imported: ImportedModel, folded: bool) -> tvm.IRModule:
    """The graph as it is pruned, or with batch normalisations folded."""
    module = readable(imported.module)
    return FoldBatchNorm()(module) if folded else module


def random_keep(group: Group, share: float) -> np.ndarray:
    """Units of a group without about that share, the same each time."""
    random = np.random.default_rng(group.index)
    left = max(1, group.units - max(1, round(share * group.units)))
    return random.permutation(group.units)[:left]


def parameters(groups: Groups) -> int:
    """Numbers in floating-point constants."""
    return sum(array.size for array in groups.constants if array.dtype.kind == "f")


def evaluate(name: str, imported: ImportedModel, share: float, folded: bool) -> Outcome:
    """Prune one model at random and compare."""
    module = graph_of(imported, folded)
    groups = find_groups(module)
    exact = [group for group in groups.prunable if not group.inexact]
    keep = {group.index: random_keep(group, share) for group in exact}
    smaller = shrink(module, keep)
    error = None
    if keep:
        inputs = random_inputs(imported)
        results = [
            stock_tvm(replace(imported, module=each))(inputs)
            for each in (zero(module, keep), smaller)
        ]
        error = max(
            relative_error(ours, expected)
            if expected.dtype.kind == "f"
            else float(not np.array_equal(ours, expected))
            for expected, ours in zip(*results, strict=True)
        )
    return Outcome(
        name,
        len(groups),
        len(exact),
        parameters(groups),
        parameters(find_groups(smaller)),
        {
            f"{group.index} {group.name}, {group.units} units": group.frozen or group.inexact
            for group in groups
            if group.frozen or group.inexact
        },
        error,
    )


def sources(
    cache: Path, models_dir: Path | None
) -> dict[str, tuple[Path, RealModel | None, dict[str, tuple[int, ...]]]]:
    """The file, how it is called, and the input shapes of each model by name."""
    found: dict[str, tuple[Path, RealModel | None, dict[str, tuple[int, ...]]]] = {
        name: (path, None, shapes) for name, (path, shapes) in find(cache).items()
    }
    for model in (*MODELS, *FURTHER):
        path = find_model(model, models_dir, cache)
        if path is not None and model.name not in found:
            found[model.name] = (path, model, dict(model.shapes))
    return found


def main() -> int:
    """Print what was found; exit status 1 if a difference is above the bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models to try (default: all)")
    parser.add_argument("--models-dir", type=Path, help="folder with models that no package has")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where packages are kept")
    parser.add_argument("--share", type=float, default=0.3, help="of the units to remove")
    parser.add_argument("--folded", action="store_true", help="after folding of batch norms")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    outcomes: list[Outcome] = []
    print(f"{'model':22}{'groups':>8}{'pruned':>8}{'params':>12}{'left':>8}{'error':>10}")
    for name, (path, model, shapes) in sources(options.cache, options.models_dir).items():
        if options.names and name not in options.names:
            continue
        constants = {
            key: np.asarray(value) for key, value in (model.constants if model else {}).items()
        }
        random = model is not None and model.random_weights
        try:
            source = with_random_weights(onnx.load(path)) if random else path
            imported = import_onnx(source, shapes, constants)
        except TinsmithError as error:
            print(f"{name:22} {error}", file=sys.stderr)
            continue
        outcome = evaluate(name, imported, options.share, options.folded)
        outcomes.append(outcome)
        left = outcome.parameters_left / outcome.parameters
        error = "-" if outcome.error is None else f"{outcome.error:.1e}"
        print(
            f"{name:22}{outcome.groups:>8}{outcome.pruned:>8}{outcome.parameters:>12}"
            f"{left:>8.2f}{error:>10}{'' if outcome.passed else '  FAIL'}"
        )
        for group, reason in outcome.left_alone.items():
            print(f"    group {group}: {reason}")
        sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
    return int(not all(outcome.passed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
