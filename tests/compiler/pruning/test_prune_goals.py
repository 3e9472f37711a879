"""Goals in measured latency, and curves of sensitivity, on a small model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.evaluate.classes import Verdict
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pruning import allocation, latency_table
from tinsmith.compiler.pruning.allocation import Allocator, Graph
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.compiler.pruning.pruner import readable
from tinsmith.compiler.pruning.sensitivity import measure_sensitivity
from tinsmith.compiler.workshop import Workshop, workshop
from tinsmith.passes.prune import find_groups
from tinsmith.passes.prune.allocation.flops import flops_model
from tinsmith.passes.prune.allocation.ranking import Ranking, rank
from tinsmith.targets.registry import get_target


@pytest.fixture(scope="module")
def graph(small_model_file: Path) -> Graph:
    module = readable(import_onnx(small_model_file).module)
    return Graph(module, find_groups(module))


def ranked(graph: Graph, alignment: int = 1) -> list[Ranking]:
    """The channels of the two convolutions; those that come first matter least."""
    return [
        rank(group, np.arange(1.0, group.units + 1), alignment) for group in graph.groups.prunable
    ]


def here(target: str = "native") -> Workshop:
    return workshop(CompileConfig(threads=1), get_target(target))


def allocator(graph: Graph, judge: object = None, **options) -> Allocator:
    return Allocator(PruneConfig(**options), get_target("native"), graph, list, judge, here())


def test_flops_are_two_for_each_multiply_add(graph: Graph) -> None:
    model = flops_model(graph.module, graph.groups)
    first, second = (group.index for group in graph.groups.prunable)
    # Convolutions at 8x8 and 3x3 results, then the scores.
    assert model.total({}) == 2 * (16 * 27 * 64 + 16 * 16 * 9 * 9 + 16 * 5)
    assert model.total({first: 8, second: 4}) == 2 * (8 * 27 * 64 + 4 * 8 * 9 * 9 + 4 * 5)


def test_latencies_are_measured_once_and_kept(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    image = [np.zeros((1, 3, 8, 8), np.float32)]
    rankings = ranked(graph, 8)
    model = latency_table.latency_model(graph.module, graph.groups, rankings, here(), image)
    assert model.total({}) > 0
    convolutions = {layer.name for layer in flops_model(graph.module, graph.groups).terms}
    assert {term.name for term in model.terms} & convolutions
    assert all(share <= 1 and seconds >= 0 for t in model.terms for share, seconds in t.points)

    def refuse(*arguments: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(latency_table, "_measured", refuse)
    again = latency_table.latency_model(graph.module, graph.groups, rankings, here(), image)
    assert again == model


def test_a_goal_in_latency_is_corrected_by_measuring(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is off by a quarter; what counts is what the whole model takes."""
    model = flops_model(graph.module, graph.groups)
    monkeypatch.setattr(allocation, "latency_model", lambda *arguments: model)

    def latencies(whole, pruned, *arguments) -> tuple[float, float]:
        left = flops_model(pruned, find_groups(pruned)).total({}) / model.total({})
        return 1.0, 0.25 + 0.75 * left

    monkeypatch.setattr(allocation, "latencies", latencies)
    chosen = allocator(graph, latency=0.6)
    widths = chosen.widths(graph, ranked(graph), 1.0)
    left = model.total(widths) / model.total({})
    assert 0.25 + 0.75 * left == pytest.approx(0.6, rel=0.05)
    assert chosen.predicted == pytest.approx(left)


def test_a_goal_in_latency_below_the_floor_tells_it(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = flops_model(graph.module, graph.groups)
    monkeypatch.setattr(allocation, "latency_model", lambda *arguments: model)
    narrowest = {ranking.group: 8 for ranking in ranked(graph, 8)}
    floor = model.total(narrowest) / model.total({})
    with pytest.raises(ConfigError, match=f"narrowest {floor:.3f} is left"):
        allocator(graph, latency=0.01).widths(graph, ranked(graph, 8), 1.0)


def test_latency_of_another_machine_cannot_be_asked_for(graph: Graph) -> None:
    with pytest.raises(ConfigError, match="cortex-a76 is another machine"):
        spec = get_target("cortex-a76")
        Allocator(PruneConfig(latency=0.5), spec, graph, list, None, here(spec.name))


def judge_of(graph: Graph) -> SimpleNamespace:
    """Says that only the first group matters: each channel of it that goes costs 5 %."""
    first = graph.groups.prunable[0].index

    def verdict(module) -> Verdict:
        gone = graph.groups[first].units - find_groups(module)[first].units
        return Verdict(100, 1 - 0.05 * gone)

    return SimpleNamespace(verdict=verdict)


def test_curves_and_widths_by_sensitivity(graph: Graph) -> None:
    rankings = ranked(graph)
    found = measure_sensitivity(graph.module, graph.groups, rankings, judge_of(graph))
    assert (found.measure, found.whole) == ("agreement", 1.0)
    steep, flat = found.curves
    np.testing.assert_allclose(steep.points, [(0.25, 0.8), (0.5, 0.6), (0.75, 0.4)])
    np.testing.assert_allclose(flat.points, [(0.25, 1), (0.5, 1), (0.75, 1)])
    assert found.to_dict()["groups"][0]["name"] == steep.name
    options = {"ratio": 0.3, "allocation": "sensitivity", "calibration": "random"}
    widths = allocator(graph, judge_of(graph), **options).widths(graph, rankings, 1.0)
    assert widths[steep.group] == 16 and widths[flat.group] in (6, 7)


def test_sensitivity_needs_classes(graph: Graph) -> None:
    judge = SimpleNamespace(verdict=lambda module: None)
    with pytest.raises(ConfigError, match="measured on classes"):
        measure_sensitivity(graph.module, graph.groups, ranked(graph), judge)
