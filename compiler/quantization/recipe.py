"""What every way of quantising a graph has in common: a recipe makes passes from a graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import tvm

from tinsmith.compiler.calibration import CalibrationSource
from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.pipeline import Pipeline, Step
from tinsmith.compiler.quantization.config import QuantizationConfig
from tinsmith.compiler.quantization.report import LayerReport
from tinsmith.compiler.workshop import Workshop
from tinsmith.passes.graph.dataflow import Dataflow, model_name
from tinsmith.passes.progress import Progress
from tinsmith.targets.spec import TargetSpec


@dataclass(frozen=True)
class Task:
    """What a recipe is given: options, the target, samples of inputs, and where they are run."""

    config: QuantizationConfig
    spec: TargetSpec
    source: CalibrationSource
    workshop: Workshop
    progress: Progress | None = None


@dataclass(frozen=True)
class Prepared:
    """A graph's way to fewer bits.

    `steps` are the passes, in order. `exact` is the float graph with which the layers of the
    quantised one can be compared tensor by tensor: where a step scales tensors (equalisation),
    the graph after that step; of it calibration has `observed` these tensors, so that it need
    not be compiled again to look at them. `layers` say what becomes of each operator.
    `mixture` makes variants in which some layers stay float, None where there are none;
    `notes` are for the report.
    """

    steps: tuple[Step, ...]
    exact: tvm.IRModule
    observed: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    mixture: Mixture | None = None
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> dict[str, str]:
        """The layers that are not quantised, and what they compute in."""
        return {layer.name: layer.computes for layer in self.layers if layer.computes != "integer"}

    def quantized(self, graph: tvm.IRModule) -> tvm.IRModule:
        """The graph after all steps."""
        return after(self.steps, graph)


def after(steps: Iterable[Step], graph: tvm.IRModule) -> tvm.IRModule:
    """The graph after some passes."""
    return Pipeline(tuple(steps)).run(graph).module


class Mixture(ABC):
    """The choice of layers that are quantised, all else (calibration, options) being equal.

    A layer that is not computes in one of `precisions`, the last of which is "float".
    """

    @property
    def precisions(self) -> tuple[str, ...]:
        """What a layer may compute in instead, shortest first."""
        return ("float",)

    @abstractmethod
    def keeping(self, kept: Mapping[str, str]) -> Prepared:
        """The same with some layers not in integers: by name what they compute in instead."""

    @abstractmethod
    def probe(self) -> tuple[tuple[str, ...], tvm.IRModule]:
        """Names of layers, and the graph with a switch for each that quantises it alone.

        The switches follow the inputs of `main`, see `tinsmith.passes.quantize.probe_quantization`.
        """


class Recipe(ABC):
    """One way of quantising: calibrates on a graph and answers the passes."""

    @abstractmethod
    def prepare(self, graph: tvm.IRModule, task: Task) -> Prepared:
        """The passes that quantise `graph`, a graph after the graph passes.

        Raises ModelError if nothing in it can be quantised, and what calibration raises.
        """


def known_layers(
    graph: tvm.IRModule, names: Collection[str], operators: Container[str]
) -> frozenset[str]:
    """The layers, results of one of `operators`, of these names or of these in the model's file.

    Raises ConfigError for a name that no layer has.
    """
    layers: dict[str, list[str]] = {}
    for node in Dataflow(graph).nodes:
        if node.operator in operators:
            for name in {node.name, model_name(node)} - {""}:
                layers.setdefault(name, []).append(node.name)
    for name in names:
        if name not in layers:
            near = ", ".join(get_close_matches(name, layers, 3) or [*layers][:3])
            raise ConfigError(f"--keep-float {name}: no layer {name}; there are {near}, ...")
    return frozenset(layer for name in names for layer in layers[name])
