"""What each layer takes at several widths, measured in the whole model.

The graph is shrunk evenly to a coarse grid of widths and compiled as it would be deployed; the
kernels of each layer are timed there, beside those of the whole graph in turns. A layer's time
is then a function of the share of its work that is left, which need not be proportional: this
is what tells a width that fills the vectors from one that does not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tvm

from tinsmith.compiler.evaluate.layer_timing import measure
from tinsmith.compiler.module.version import tinsmith_version
from tinsmith.compiler.pruning.observed import compile_graph
from tinsmith.compiler.user_folders import cache_folder
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.progress import Progress
from tinsmith.passes.prune.allocation.cost import Axis, CostModel, Term
from tinsmith.passes.prune.allocation.flops import flops_model
from tinsmith.passes.prune.allocation.ranking import Ranking
from tinsmith.passes.prune.groups import Groups
from tinsmith.passes.prune.shrink import shrink
from tinsmith.targets.key import describe

# Widths at which all groups are measured, as shares of the whole ones.
GRID = (0.75, 0.5, 0.25)
# At most; models that take milliseconds get fewer.
ROUNDS = 2000
# Of a measurement by which a choice is judged.
_REPEATS = 3
# What is not part of any layer: pooling, sums between layers, the way from kernel to kernel.
_REST = "everything else"
# 2: with warm weights; 3: warmed by more than one run.
_FORMAT = 3


def latency_model(
    module: tvm.IRModule,
    groups: Groups,
    rankings: Sequence[Ranking],
    workshop: Workshop,
    inputs: Sequence[np.ndarray],
    progress: Progress | None = None,
) -> CostModel:
    """Seconds of a run as a function of the widths of the groups that `rankings` name.

    What was measured is kept in the user's cache and
    used again for the same graph, machine and number of threads.
    """
    terms = flops_model(module, groups).terms
    rest = Term(_REST, (Axis(sum(r.units for r in rankings), _blocks(rankings)),), ())
    file = _cache_file(module, groups, rankings, workshop)
    known = _read(file)
    if known is None:
        known = _measured(module, rankings, (*terms, rest), workshop, inputs, progress)
        _write(file, known)
    return CostModel(
        "latency",
        "seconds",
        tuple(
            Term(term.name, term.axes, tuple((s, t) for s, t in known[term.name]))
            for term in (*terms, rest)
            if term.name in known
        ),
    )


def evenly(rankings: Sequence[Ranking], share: float) -> dict[int, int]:
    """The width of each group nearest to a share of its units."""
    return {ranking.group: ranking.nearest(share * ranking.units) for ranking in rankings}


def latencies(
    whole: tvm.IRModule,
    pruned: tvm.IRModule,
    workshop: Workshop,
    inputs: Sequence[np.ndarray],
) -> tuple[float, float]:
    """Seconds that a run of either graph takes, measured in turns on the machine at hand."""
    with (
        compile_graph(whole, workshop) as before,
        compile_graph(pruned, workshop) as after,
    ):
        modules = [before, after]
        found = [measure(modules, (), (), inputs, ROUNDS) for _ in range(_REPEATS)]
    totals = np.array([[timing.total for timing in timings] for timings in found])
    # Ratios of the same seconds: other load that comes and goes does not change the median.
    seconds = float(np.median(totals[:, 0]))
    return seconds, seconds * float(np.median(totals[:, 1] / totals[:, 0]))


def _blocks(rankings: Sequence[Ranking]) -> tuple[tuple[int, int, int], ...]:
    return tuple((ranking.group, 1, ranking.units) for ranking in rankings)


def _measured(
    module: tvm.IRModule,
    rankings: Sequence[Ranking],
    terms: Sequence[Term],
    workshop: Workshop,
    inputs: Sequence[np.ndarray],
    progress: Progress | None,
) -> dict[str, list[tuple[float, float]]]:
    """(share of the work, seconds) of each layer, rising in share."""
    points: dict[str, dict[float, list[float]]] = {term.name: {} for term in terms}
    reference: float | None = None
    with compile_graph(module, workshop) as whole:
        chains = _names_of(module, [term.name for term in terms])
        present = {name for call in whole.calls for name in call.members}
        named = {
            term: next((name for name in chain if name in present), "")
            for term, chain in chains.items()
        }
        tensors = [node.name for node in Dataflow(module).nodes]
        layers = [name for name in named.values() if name]
        for index, share in enumerate(GRID):
            if progress is not None:
                progress(f"latency at {share:.0%} of the widths", index / len(GRID))
            widths = evenly(rankings, share)
            keep = {r.group: np.arange(widths[r.group]) for r in rankings}
            with compile_graph(shrink(module, keep), workshop) as smaller:
                timings = measure([whole, smaller], layers, tensors, inputs, ROUNDS)
            # Other load changes between the rounds: all are told in the first one's seconds.
            reference = reference or timings[0].total
            scale = reference / timings[0].total
            for timing, at in zip(timings, ({}, widths), strict=True):
                spent = {t: timing.layers.get(n, 0.0) for t, n in named.items() if n}
                spent[_REST] = max(timing.total - sum(spent.values()), 0.0)
                for term in terms:
                    if term.name in spent:
                        seconds = points[term.name].setdefault(round(term.share(at), 6), [])
                        seconds.append(scale * spent[term.name])
    return {
        name: [(share, float(np.median(seconds))) for share, seconds in sorted(found.items())]
        for name, found in points.items()
        if found
    }


def _names_of(module: tvm.IRModule, layers: Sequence[str]) -> dict[str, list[str]]:
    """For each layer the tensors from its product on until the graph branches.

    A kernel is known by the tensors that it computes, of which lowering renames some.
    """
    graph = Dataflow(module)
    chains: dict[str, list[str]] = {}
    for layer in layers:
        node = graph.named(layer)
        if node is None:
            continue
        chains[layer] = [node.name]
        while len(node.readers) == 1 and not node.escapes:
            node = node.readers[0]
            chains[layer].append(node.name)
    return chains


def _cache_file(
    module: tvm.IRModule,
    groups: Groups,
    rankings: Sequence[Ranking],
    workshop: Workshop,
) -> Path:
    """Named by all that the latencies depend on: the values of weights are not part of that."""
    content = {
        "format": _FORMAT,
        "version": tinsmith_version(),
        "graph": module.script(show_meta=False),
        "constants": [list(array.shape) for array in groups.constants],
        "groups": [(ranking.group, ranking.units, ranking.step) for ranking in rankings],
        "target": describe(workshop.spec),
        "threads": workshop.threads,
        "grid": GRID,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "latency" / f"{digest[:32]}.json"


def _read(file: Path) -> dict[str, list[tuple[float, float]]] | None:
    """What was measured before; None if nothing was, or the file is damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {
            str(name): [(float(share), float(seconds)) for share, seconds in points]
            for name, points in found.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _write(file: Path, points: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Keep the points; a cache that cannot be written is none."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(points), encoding="utf-8")
        scratch.replace(file)
    except OSError:
        return
