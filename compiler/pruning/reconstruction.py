"""Least-squares reconstruction, layer by layer, over the samples of a source.

Layers are solved in the order of the graph: the inputs of each come from the pruned graph with
all layers before it solved already, its targets from the whole graph. So each layer makes
up for the errors of those before it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm

from compiler.calibration import CalibrationSource
from compiler.pruning.observed import ObservedGraph
from passes.prune.recovery.layers import Layer, find_layers
from passes.prune.recovery.least_squares import Moments, Solution, solve_layer
from passes.prune.recovery.replace_operands import replace_operands
from passes.quantize.dataflow import Dataflow, Node
from targets.spec import TargetSpec

Progress = Callable[[str, float], None]
# By tensor and axis: the positions of the whole graph's tensor that are left in the pruned one's.
Positions = Mapping[tuple[str, int], np.ndarray]


@dataclass(frozen=True)
class LayerError:
    """The squared error of a layer's result over the square of what it should be.

    `before` and `after` it was solved, both given the solved layers before it, and both with
    the best intercept.
    """

    name: str
    before: float
    after: float


class Reconstruction:
    """Solves the layers of a pruned graph so that it computes what the whole graph did.

    `spec` describes the machine at hand; at most `places` results of each sample count
    for each layer, at random; memory does not depend on the number of samples.
    """

    def __init__(
        self,
        whole: tvm.IRModule,
        source: CalibrationSource,
        spec: TargetSpec,
        *,
        ridge: float = 1e-3,
        places: int = 64,
        seed: int = 0,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self._whole = whole
        self._source = source
        self._spec = spec
        self._ridge = ridge
        self._places = places
        self._seed = seed
        self._threads = threads
        self._progress = progress

    def recovered(
        self, pruned: tvm.IRModule, positions: Positions
    ) -> tuple[tvm.IRModule, tuple[LayerError, ...]]:
        """The pruned graph with new weights and biases, and the errors of the layers solved.

        `positions` tell which channels are left; tensors that are not named are whole. Layers
        that no removed channel has an influence on are left alone.
        """
        rounds = solving_order(pruned, positions)
        errors: list[LayerError] = []
        targets = sorted({layer.target for layers in rounds for layer in layers})
        if not targets:
            return pruned, ()
        with ObservedGraph(self._whole, self._spec, targets, self._threads) as whole:
            for index, layers in enumerate(rounds):
                if self._progress is not None:
                    self._progress(f"reconstruct {layers[0].name}", index / len(rounds))
                moments = self._observed(whole, pruned, layers, positions)
                values: dict[tuple[str, int], np.ndarray] = {}
                for layer in layers:
                    solution = solve_layer(
                        moments[layer.name],
                        layer.matrix(layer.weights),
                        self._ridge,
                        intercept=bool(layer.bias),
                    )
                    values |= _new_operands(pruned, layer, solution)
                    errors.append(LayerError(layer.name, solution.before, solution.after))
                pruned = replace_operands(pruned, values)
        return pruned, tuple(errors)

    def _observed(
        self,
        whole: ObservedGraph,
        pruned: tvm.IRModule,
        layers: Sequence[Layer],
        positions: Positions,
    ) -> dict[str, Moments]:
        """The sums over all samples, by layer."""
        moments = {layer.name: Moments() for layer in layers}
        generator = np.random.default_rng(self._seed)
        needed = [name for layer in layers for name in (layer.data, layer.addend) if name]
        with ObservedGraph(pruned, self._spec, needed, self._threads) as remaining:
            for sample in self._source:
                wanted, found = whole.run(sample), remaining.run(sample)
                for layer in layers:
                    data = found[layer.data]
                    places = layer.places(data)
                    if len(places) > self._places:
                        places = places[generator.choice(len(places), self._places, replace=False)]
                    target = wanted[layer.target]
                    axis = layer.channel_axis % target.ndim
                    kept = positions.get((layer.target, axis))
                    goal = layer.values(target if kept is None else target.take(kept, axis), places)
                    if layer.addend:
                        goal = goal - layer.values(found[layer.addend], places)
                    moments[layer.name].update(layer.rows(data, places), goal)
        return moments


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


def _new_operands(
    pruned: tvm.IRModule, layer: Layer, solution: Solution
) -> dict[tuple[str, int], np.ndarray]:
    """The constants that a solution replaces."""
    values = {(layer.name, 1): layer.unflattened(solution.weights)}
    node = Dataflow(pruned).named(layer.bias)
    if solution.intercept is not None and node is not None:
        call: Any = node.value
        position = 1 if call.args[0].same_as(node.operands[0].variable) else 0
        bias = solution.intercept.reshape(layer.bias_shape).astype(np.float32)
        values[layer.bias, position] = bias
    return values
