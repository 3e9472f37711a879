"""The algorithm of a convolution is chosen in the model, remembered and applied."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import tinsmith
from tinsmith.compiler.cli import app
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.module.base import StepTime
from tinsmith.compiler.preparation import Clock, Prepared, prepare
from tinsmith.compiler.tuning import algorithms
from tinsmith.compiler.tuning.algorithms import (
    AlgorithmSearch,
    ChosenAlgorithms,
    StoredAlgorithms,
    algorithm_of,
    algorithm_subject,
)
from tinsmith.compiler.tuning.allocation import TaskState
from tinsmith.compiler.tuning.lookup import StoredRecords
from tinsmith.compiler.tuning.records import Record, decisions_key
from tinsmith.compiler.tuning.report import TuneOptions
from tinsmith.compiler.tuning.runner import Runner
from tinsmith.compiler.tuning.search import Search
from tinsmith.compiler.tuning.store import Store
from tinsmith.compiler.tuning.tasks import distinct_kernels
from tinsmith.targets.algorithms import AlgorithmLookup
from tinsmith.targets.cpu.operators.algorithms import WINOGRAD_TILES
from tinsmith.targets.registry import get_target

SPEC = get_target("x86-64-v4")
CONFIG = CompileConfig(target="x86-64-v4", golden=False)
TEMPLATES = {"direct": {"convolution"}, "winograd2": {"winograd"}, "winograd4": {"winograd"}}


@pytest.fixture(scope="module")
def convolutions() -> onnx.ModelProto:
    """Two equal 3x3 convolutions of 32 channels on 14x14, one with a residual."""
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(
            (0.1 * generator.standard_normal((32, 32, 3, 3))).astype(np.float32), name
        )
        for name in ("w1", "w2")
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["first"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["first"], ["first_relu"]),
        helper.make_node("Conv", ["first_relu", "w2"], ["second"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["second", "x"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["y"]),
    ]
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 32, 14, 14]) for name in "xy"
    ]
    graph = helper.make_graph(nodes, "convolutions", shapes[:1], shapes[1:], weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="test"
    )


def lowered(
    model: onnx.ModelProto, lookup: AlgorithmLookup, config: CompileConfig = CONFIG
) -> Prepared:
    return prepare(model, config, SPEC, Clock(None), None, algorithms=lookup)


def templates(prepared: Prepared) -> set[str]:
    """The templates of the kernels that are convolutions."""
    found = {kernel.template for kernel in prepared.pipeline.kernels}
    return found & {"convolution", "winograd"}


@pytest.fixture(scope="module")
def rule(convolutions: onnx.ModelProto) -> tuple[Prepared, StoredAlgorithms]:
    """The model without any records, and what was asked for."""
    asked = StoredAlgorithms()
    return lowered(convolutions, asked), asked


def store(folder: Path, asked: StoredAlgorithms, tile: int, version: int = 0) -> Store:
    """A store in which the one convolution of `asked` has a record."""
    (workload,) = asked.asked
    subject = algorithm_subject(workload, SPEC)
    subject = replace(subject, version=version or subject.version)
    made = Store(folder)
    made.shelf_to_write(SPEC).add_records([Record(subject, {"tile": tile}, 1e-3, 2e-3)])
    return made


def stored(*stores: Store) -> StoredAlgorithms:
    return StoredAlgorithms(StoredRecords(stores, SPEC))


def test_a_record_is_applied(
    convolutions: onnx.ModelProto, rule: tuple[Prepared, StoredAlgorithms], tmp_path: Path
) -> None:
    for name, tile in {"direct": 0, **WINOGRAD_TILES}.items():
        found = stored(store(tmp_path / name, rule[1], tile))
        prepared = lowered(convolutions, found)
        assert templates(prepared) == TEMPLATES[name]
        assert list(found.asked.values()) == [name]
        assert found.coverage() == "1 of 1 convolution algorithms from records"
        assert found.switched_on() == (tile > 0)
        tasks = distinct_kernels(prepared.pipeline.fused, SPEC).values()
        used = {found[1] for task in tasks for found in [algorithm_of(task, SPEC)] if found}
        assert used == {name}


def test_what_does_not_count_leaves_the_choice_to_the_rule(
    convolutions: onnx.ModelProto, rule: tuple[Prepared, StoredAlgorithms], tmp_path: Path
) -> None:
    records = StoredRecords([store(tmp_path / "stale", rule[1], 0, version=99)], SPEC)
    found = StoredAlgorithms(records)
    assert templates(lowered(convolutions, found)) == templates(rule[0])
    assert found.coverage() == "0 of 1 convolution algorithms from records"
    assert len(records.stale) == 1
    found = stored(store(tmp_path / "hostile", rule[1], 77))
    assert templates(lowered(convolutions, found)) == templates(rule[0])
    assert list(found.asked.values()) == [None]


def test_the_first_store_decides(rule: tuple[Prepared, StoredAlgorithms], tmp_path: Path) -> None:
    (workload,) = rule[1].asked
    first, second = store(tmp_path / "a", rule[1], 0), store(tmp_path / "b", rule[1], 4)
    assert stored(first, second).find(workload, SPEC) == "direct"
    assert stored(second, first).find(workload, SPEC) == "winograd4"


def test_without_winograd_no_record_switches_it_on(
    convolutions: onnx.ModelProto, rule: tuple[Prepared, StoredAlgorithms], tmp_path: Path
) -> None:
    found = stored(store(tmp_path, rule[1], 4))
    prepared = lowered(convolutions, found, CONFIG.with_options(winograd=False))
    assert templates(prepared) == {"convolution"}
    assert not found.asked


Times = dict[str, float]


@pytest.fixture
def search(
    convolutions: onnx.ModelProto,
    rule: tuple[Prepared, StoredAlgorithms],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., AlgorithmSearch]:
    """A search in which each kernel of an algorithm takes the given time, in each measurement."""

    def make(*measured: Times) -> AlgorithmSearch:
        answers = iter(measured)
        built: list[Prepared] = []

        def build(prepared: Prepared, records: object, folder: Path) -> Path:
            built.append(prepared)
            return folder

        def steps(paths: list[Path], _: float) -> list[list[StepTime]]:
            times = next(answers)
            answer = []
            for path, prepared in zip(paths, built[-len(paths) :], strict=True):
                names = [
                    name
                    for task in distinct_kernels(prepared.pipeline.fused, SPEC).values()
                    if algorithm_of(task, SPEC)
                    for name in task.name.split()
                ]
                answer.append([StepTime(i, n, times[path.name]) for i, n in enumerate(names)])
            return answer

        monkeypatch.setattr(algorithms, "build", build)
        runner = cast(Runner, SimpleNamespace(step_seconds=steps))
        made = AlgorithmSearch(
            *rule, lambda chosen: lowered(convolutions, chosen), None, runner, None
        )
        tasks = distinct_kernels(rule[0].pipeline.fused, SPEC).values()
        assert made.restrict([replace(task, share=0.5) for task in tasks])
        assert made.measure()
        return made

    return make


def the_rule(rule: tuple[Prepared, StoredAlgorithms]) -> str:
    tasks = distinct_kernels(rule[0].pipeline.fused, SPEC).values()
    return next(found[1] for task in tasks for found in [algorithm_of(task, SPEC)] if found)


def test_the_fastest_algorithm_is_chosen(search: Callable[..., AlgorithmSearch]) -> None:
    for name, template in TEMPLATES.items():
        times = dict.fromkeys(TEMPLATES, 2.0) | {name: 1.0}
        choice = search(times).decide([], {"model": "m"})
        assert templates(choice.prepared) == template
        (record,) = choice.records
        assert record.decisions == {"tile": WINOGRAD_TILES.get(name, 0)}
        assert record.provenance["kernel"] == "3x3 32->32 on 14x14"
        assert record.seconds == pytest.approx(2.0)  # of both kernels
        assert record.ratio == pytest.approx(0.5 if choice.is_new else 1.0)
        assert len(choice.told) == choice.is_new
        assert all(f"14x14: {name} instead of" in line for line in choice.told)


def test_hardly_faster_is_not_enough(
    search: Callable[..., AlgorithmSearch], rule: tuple[Prepared, StoredAlgorithms]
) -> None:
    times = dict.fromkeys(TEMPLATES, 0.99) | {the_rule(rule): 1.0}
    choice = search(times).decide([], {})
    assert not choice.is_new
    assert choice.prepared is rule[0]
    assert choice.records == choice.rejected


def test_only_algorithms_that_are_near_are_searched(
    search: Callable[..., AlgorithmSearch],
) -> None:
    near = search({"direct": 1.0, "winograd2": 1.2, "winograd4": 9.0}).contenders()
    found = [algorithm_of(task, SPEC) for task in near]
    assert sorted(one[1] for one in found if one) == ["direct"] * 2 + ["winograd2"] * 2
    assert search({"direct": 1.0, "winograd2": 2.0, "winograd4": 9.0}).contenders() == []


def test_searched_decisions_may_turn_the_choice(search: Callable[..., AlgorithmSearch]) -> None:
    untuned = {"direct": 1.0, "winograd2": 1.2, "winograd4": 9.0}
    made = search(untuned, untuned | {"winograd2": 0.6})
    states = []
    for index, task in enumerate(made.contenders()):
        one = Search(task.space, task.numbers)
        one.tried[decisions_key(task.space[-1])] = 0.5
        states.append(TaskState(index, task, one))
    (record,) = made.decide(states, {}).records
    assert record.decisions == {"tile": 2}
    assert record.seconds == pytest.approx(1.2)


def test_choices_extend_what_is_known(rule: tuple[Prepared, StoredAlgorithms]) -> None:
    (workload,) = rule[1].asked
    other = replace(workload, batch=2)
    chosen = ChosenAlgorithms({workload: "winograd2"}, StoredAlgorithms())
    assert chosen.find(workload, SPEC) == "winograd2"
    assert chosen.find(other, SPEC) is None


def test_a_job_remembers_algorithms(convolutions: onnx.ModelProto, tmp_path: Path) -> None:
    log, path = tmp_path / "log", tmp_path / "convolutions.onnx"
    onnx.save(convolutions, path)
    options = TuneOptions(minutes=20.0, trials=2, log=log)
    tinsmith.tune(path, options=options)
    again = tinsmith.tune(path, options=replace(options, tasks=9))
    assert again.trials == 0
    shown = CliRunner().invoke(app, ["logs", "show", "--log", str(log), "--json"])
    (records,) = (machine["records"] for machine in json.loads(shown.stdout))
    (chosen,) = [record for record in records if record["template"] == "algorithm"]
    made = tinsmith.compile_to(path, tmp_path / "m", log=log, runner=False, static_library=False)
    assert made.coverage.endswith("; 1 of 1 convolution algorithms from records")
    is_winograd = chosen["decisions"]["tile"] > 0
    used = {kernel.template for kernel in made.manifest.kernels}
    assert ("winograd" in used) == is_winograd
    assert any("Winograd's algorithm in 1 convolutions" in n for n in made.notes) == is_winograd
    shown = CliRunner().invoke(app, ["logs", "prune", "--log", str(log)])
    assert shown.exit_code == 0
    (shelf,) = Store(log).shelves()
    assert "algorithm" in {subject.template for subject in shelf.records()}
