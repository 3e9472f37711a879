"""Least-squares reconstruction, layer by layer, over the samples of a source.

Layers are solved in the order of the graph: the inputs of each come from the pruned graph with
all layers before it solved already, its targets from the whole graph. So each layer makes
up for the errors of those before it, too (the asymmetric reconstruction of Zhang et al. 2015,
"Accelerating Very Deep Convolutional Networks for Classification and Detection", section 3.4,
arXiv:1505.06798), and where an activation reads it, only what that leaves counts. Of every four
samples one only checks what the others say: by it, the ridge of each layer is chosen, and whether
its old weights are better.

From few samples that would be learned by heart: what earlier layers have fitted on just these
samples is better there than anywhere else, and later layers rely on it. Then only the layers that
read removed channels are solved, each by itself, with inputs of the whole graph too
(He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", arXiv:1707.06168).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm

from tinsmith.compiler.calibration import CalibrationSource
from tinsmith.compiler.pruning.frontier import Arrays, Frontier
from tinsmith.compiler.pruning.observed import ObservedGraph
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.graph.dataflow import Dataflow, Node
from tinsmith.passes.graph.tensors import constant_array, static_shape
from tinsmith.passes.progress import Progress
from tinsmith.passes.prune.recovery.layers import Layer, find_layers
from tinsmith.passes.prune.recovery.least_squares import RIDGES, Moments, Solution, choose_solution
from tinsmith.passes.prune.recovery.replace_operands import replace_operands
from tinsmith.passes.prune.recovery.through_activation import Part, solve_through

# By tensor and axis: the positions of the whole graph's tensor that are left in the pruned one's.
Positions = Mapping[tuple[str, int], np.ndarray]

_CHECKS_EVERY = 4


@dataclass(frozen=True)
class LayerError:
    """The squared error of a layer's result over the square of what it should be.

    `before` and `after` it was solved, both given the solved layers before it, on samples that it
    was not solved for (on all, if there is one sample only), and behind its activation, if one
    cuts off some of the result. `ridge` is what was chosen:
    infinite if only the bias is new, None if the layer stays as it is. It was solved from `rows`
    results for `columns` inputs of each output.
    """

    name: str
    before: float
    after: float
    ridge: float | None = None
    rows: int = 0
    columns: int = 0


class Reconstruction:
    """Solves the layers of a pruned graph so that it computes what the whole graph did.

    At most `places` results of each sample count
    for each layer, at random. So many `views` of one sample follow each other in `source`.
    `ridge` is the same for all layers, or None to choose it. Tensors of all samples are kept, in
    files if there are many. With `alone` layers do not make up for others.
    """

    def __init__(
        self,
        whole: tvm.IRModule,
        source: CalibrationSource,
        workshop: Workshop,
        *,
        ridge: float | None = None,
        places: int = 64,
        views: int = 1,
        alone: bool = False,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self._whole = whole
        self._source = source
        self._workshop = workshop
        self._ridges = RIDGES if ridge is None else (ridge,)
        self._places = places
        self._views = views
        self._alone = alone
        self._seed = seed
        self._progress = progress

    def recovered(
        self, pruned: tvm.IRModule, positions: Positions
    ) -> tuple[tvm.IRModule, tuple[LayerError, ...]]:
        """The pruned graph with new weights and biases, and the errors of the layers solved.

        `positions` tell which channels are left; tensors that are not named are whole. Layers
        that no removed channel has an influence on are left alone.
        """
        if self._alone:
            return self._each_alone(pruned, positions)
        rounds = solving_order(pruned, positions)
        errors: list[LayerError] = []
        if not rounds:
            return pruned, ()
        with Arrays() as arrays:
            layers = [layer for part in rounds for layer in part]
            self._tell("results of the whole graph", 0.0)
            goals = self._goals(pruned, layers, positions, arrays)
            frontier = Frontier(self._source, self._workshop, arrays)
            for index, part in enumerate(rounds):
                self._tell(f"reconstruct {part[0].name}", index / len(rounds))
                needed = [name for layer in part for name in (layer.data, layer.addend) if name]
                frontier.advance(pruned, needed)
                values: dict[tuple[str, int], np.ndarray] = {}
                for layer in part:
                    wanted = goals.pop(layer.name)
                    rows = _Rows(layer, _from_frontier(layer, frontier, wanted), self._views)
                    error, new = self._solved(pruned, rows)
                    for goal in wanted:
                        arrays.dropped(goal.results)
                    errors.append(error)
                    values |= new
                pruned = replace_operands(pruned, values)
        return pruned, tuple(errors)

    def _each_alone(
        self, pruned: tvm.IRModule, positions: Positions
    ) -> tuple[tvm.IRModule, tuple[LayerError, ...]]:
        """Solve what reads removed channels, all of it from inputs that the whole graph has."""
        layers = narrowed_layers(self._whole, pruned)
        errors: list[LayerError] = []
        values: dict[tuple[str, int], np.ndarray] = {}
        if not layers:
            return pruned, ()
        with Arrays() as arrays:
            self._tell("results of the whole graph", 0.0)
            gathered = self._gathered(pruned, layers, positions, arrays)
            for index, layer in enumerate(layers):
                self._tell(f"reconstruct {layer.name}", index / len(layers))
                parts = gathered.pop(layer.name)
                error, new = self._solved(pruned, _Rows(layer, parts.__iter__, self._views))
                for part in parts:
                    for array in part:
                        arrays.dropped(array)
                errors.append(error)
                values |= new
        return replace_operands(pruned, values), tuple(errors)

    def _gathered(
        self,
        pruned: tvm.IRModule,
        layers: Sequence[Layer],
        positions: Positions,
        arrays: Arrays,
    ) -> dict[str, list[Gathered]]:
        """By layer and sample: inputs, results and addends at some places in the whole graph."""
        generator = np.random.default_rng(self._seed)
        graph = Dataflow(pruned)
        every = {layer.name: layer.places(_empty(graph, layer.data)) for layer in layers}
        found: dict[str, list[Gathered]] = {layer.name: [] for layer in layers}
        read = {n for layer in layers for n in (layer.data, layer.target, layer.addend) if n}
        with ObservedGraph(self._whole, self._workshop, sorted(read)) as whole:
            for sample in self._source:
                tensors = {n: _left(array, n, positions) for n, array in whole.run(sample).items()}
                for layer in layers:
                    places = self._some(every[layer.name], generator)
                    addend = np.zeros((), np.float32)
                    if layer.addend:
                        addend = layer.values(tensors[layer.addend], places)
                    found[layer.name].append(
                        (
                            arrays.kept(layer.rows(tensors[layer.data], places)),
                            arrays.kept(layer.values(tensors[layer.target], places)),
                            arrays.kept(addend),
                        )
                    )
        return found

    def _some(self, places: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """At most so many of the places, at random."""
        if len(places) <= self._places:
            return places
        return places[generator.choice(len(places), self._places, replace=False)]

    def _solved(
        self, pruned: tvm.IRModule, rows: _Rows
    ) -> tuple[LayerError, dict[tuple[str, int], np.ndarray]]:
        """How well a layer was solved for, and its new operands."""
        layer = rows.layer
        bias = _bias_operand(pruned, layer)
        solution, count = self._solution(rows, bias)
        columns = layer.matrix(layer.weights).shape[1]
        error = LayerError(
            layer.name, solution.before, solution.after, solution.ridge, count, columns
        )
        if solution.ridge is None:
            return error, {}
        return error, _new_operands(layer, solution, bias)

    def _solution(self, rows: _Rows, bias: tuple[int, np.ndarray] | None) -> tuple[Solution, int]:
        """The solution of a layer, and of how many rows it is."""
        fit, check = Moments(), Moments()
        for part in rows():
            (check if part.checks else fit).update(part.inputs, part.wanted)
        matrix = rows.layer.matrix(rows.layer.weights)
        old = None if bias is None else bias[1].reshape(len(matrix), -1)
        solution = choose_solution(fit, check, matrix, old, self._ridges)
        if rows.layer.is_bounded and old is not None and fit.count and check.count:
            solution = solve_through(rows, fit, check, matrix, old, solution)
        return solution, fit.count + check.count

    def _tell(self, phase: str, share: float) -> None:
        if self._progress is not None:
            self._progress(phase, share)

    def _goals(
        self,
        pruned: tvm.IRModule,
        layers: Sequence[Layer],
        positions: Positions,
        arrays: Arrays,
    ) -> dict[str, list[_Goal]]:
        """What each layer should answer at some places of each sample, by the whole graph."""
        generator = np.random.default_rng(self._seed)
        graph = Dataflow(pruned)
        every = {layer.name: layer.places(_empty(graph, layer.data)) for layer in layers}
        goals: dict[str, list[_Goal]] = {layer.name: [] for layer in layers}
        targets = sorted({layer.target for layer in layers})
        with ObservedGraph(self._whole, self._workshop, targets) as whole:
            for sample in self._source:
                wanted = whole.run(sample)
                for layer in layers:
                    places = self._some(every[layer.name], generator)
                    target = _left(wanted[layer.target], layer.target, positions)
                    found = layer.values(target, places)
                    goals[layer.name].append(_Goal(places, arrays.kept(found)))
        return goals


@dataclass(frozen=True)
class _Goal:
    """Results `[groups, places, OC]` of a layer in the whole graph, for one sample."""

    places: np.ndarray
    results: np.ndarray


def _empty(graph: Dataflow, name: str) -> np.ndarray:
    """An array of a tensor's shape that takes no memory."""
    node = graph.named(name)
    shape = None if node is None else static_shape(node.variable)
    return np.broadcast_to(np.zeros((), np.float32), shape or ())


# Of one sample: inputs `[groups, places, K]`, results and what is added to them
# `[groups, places, OC]` (a scalar 0 if nothing is).
Gathered = tuple[np.ndarray, np.ndarray, np.ndarray]


def _left(array: np.ndarray, name: str, positions: Positions) -> np.ndarray:
    """What pruning leaves of a tensor of the whole graph."""
    for axis in range(array.ndim):
        kept = positions.get((name, axis))
        if kept is not None:
            array = array.take(kept, axis)
    return array


def _from_frontier(
    layer: Layer, samples: Frontier, goals: Sequence[_Goal]
) -> Callable[[], Iterator[Gathered]]:
    """Inputs and addends of the pruned graph, results of the whole one, computed by each call."""

    def parts() -> Iterator[Gathered]:
        for found, goal in zip(samples, goals, strict=True):
            added = np.zeros((), np.float32)
            if layer.addend:
                added = layer.values(found[layer.addend], goal.places)
            yield layer.rows(found[layer.data], goal.places), goal.results, added

    return parts


class _Rows:
    """The rows of a layer on all samples, computed anew by each call."""

    def __init__(self, layer: Layer, parts: Callable[[], Iterator[Gathered]], views: int) -> None:
        self.layer = layer
        self._parts = parts
        self._views = views

    def __call__(self) -> Iterator[Part]:
        lower, upper = self.layer.bounds
        for index, (inputs, results, added) in enumerate(self._parts()):
            yield Part(
                inputs,
                np.asarray(results) - added,
                index // self._views % _CHECKS_EVERY == 1,
                lower - added,
                upper - added,
            )


def narrowed_layers(whole: tvm.IRModule, pruned: tvm.IRModule) -> tuple[Layer, ...]:
    """The layers of `pruned` each of whose outputs is of fewer inputs than in `whole`."""
    inputs = {layer.name: layer.matrix(layer.weights).shape[1] for layer in find_layers(whole)}
    return tuple(
        layer
        for layer in find_layers(pruned)
        if layer.matrix(layer.weights).shape[1] < inputs.get(layer.name, 0)
    )


def solving_order(pruned: tvm.IRModule, positions: Positions) -> tuple[tuple[Layer, ...], ...]:
    """The layers to solve, in rounds: those of one round do not depend on each other.

    Layers whose inputs are the same as in the whole graph are left out.
    """
    graph = Dataflow(pruned)
    shrunk = {name for name, _ in positions}
    layers = {layer.name: layer for layer in find_layers(pruned)}
    changed: set[Node] = set()
    behind: dict[Node, frozenset[str]] = {}
    chosen: dict[str, Layer] = {}
    for node in graph.nodes:
        behind[node] = frozenset().union(*(behind[operand] for operand in node.operands))
        layer = layers.get(node.name)
        if any(operand in changed or operand.name in shrunk for operand in node.operands):
            changed.add(node)
        if layer is not None and node in changed:
            chosen[layer.name] = layer
            behind[node] |= {layer.name}
    waits = {
        layer.name: {
            name
            for tensor in (layer.data, layer.addend)
            if tensor and (node_of := graph.named(tensor)) is not None
            for name in behind[node_of]
        }
        for layer in chosen.values()
    }
    rounds: list[tuple[Layer, ...]] = []
    solved: set[str] = set()
    while len(solved) < len(chosen):
        ready = [name for name in chosen if name not in solved and waits[name] <= solved]
        rounds.append(tuple(chosen[name] for name in ready))
        solved.update(ready)
    return tuple(rounds)


def _bias_operand(pruned: tvm.IRModule, layer: Layer) -> tuple[int, np.ndarray] | None:
    """The position and the value of the bias that is added behind a layer, if there is one."""
    node = Dataflow(pruned).named(layer.bias) if layer.bias else None
    if node is None:
        return None
    call: Any = node.value
    position = 1 if call.args[0].same_as(node.operands[0].variable) else 0
    value = constant_array(call.args[position])
    return None if value is None else (position, value)


def _new_operands(
    layer: Layer, solution: Solution, bias: tuple[int, np.ndarray] | None
) -> dict[tuple[str, int], np.ndarray]:
    """The constants that a solution replaces."""
    values = {(layer.name, 1): layer.unflattened(solution.weights)}
    if solution.intercept is not None and bias is not None:
        position, old = bias
        values[layer.bias, position] = solution.intercept.reshape(old.shape).astype(np.float32)
    return values
