"""Quantising networks of many endings: several outputs, splits, constants, integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from heads import HEADS, network

import tinsmith
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pipeline import Pipeline, graph_passes
from tinsmith.compiler.quantization.outputs import OutputNoise, class_output
from tinsmith.passes.graph.dataflow import Dataflow, stored_behind
from tinsmith.passes.quantize.placement import place
from tinsmith.targets.registry import backend_of, get_target


def quantized(model: onnx.ModelProto, folder: Path, format: str, **options: object):
    if format == "int8":
        options |= {"calibration": "random"}
    config = tinsmith.QuantizationConfig(format=format, samples=4, fallback=False, **options)
    return tinsmith.compile_to(
        model, folder / "m", quantization=config, runner=False, static_library=False
    )


def prepared(model: onnx.ModelProto):
    return Pipeline(graph_passes()).run(import_onnx(model).module).module


def test_several_heads_at_once_in_integers(tmp_path: Path) -> None:
    model = network(
        "chosen_class", "split_end", "inner_tensor", "constant_beside", "best_boxes", "same_twice"
    )
    report = quantized(model, tmp_path, "int8", min_agreement=50)
    assert len(report.differences) == len(model.graph.output) == 15
    assert all(difference.agrees for difference in report.differences)
    # The scores decide about classes, although an output that is none comes before them.
    assert report.quantization.agreement >= 0.5
    assert 10 < report.quantization.output_sqnr_db < 60


@pytest.mark.parametrize("head", HEADS)
def test_what_is_observed_is_a_tensor(head: str) -> None:
    graph = prepared(network(head))
    known = Dataflow(graph)
    placement = place(graph, backend_of(get_target("native")).formats)
    assert len(placement.integer_operators) >= 3
    for name in placement.integer_operators:
        node = stored_behind(known.named(name), placement.stored)
        assert hasattr(node.variable.ty, "shape"), f"{head}: {node.name} is a tuple"


@pytest.mark.parametrize(
    ("head", "position", "count"),
    [
        ("inner_tensor", 0, 5),
        ("segments_and_classes", 1, 5),
        ("chosen_class", 1, 5),
        ("only_integers", 0, None),
        ("constant_beside", 2, 5),
        ("flags", 1, 5),
        ("passed_through", 0, 5),
    ],
)
def test_the_output_that_chooses_a_class(head: str, position: int, count: int | None) -> None:
    found = class_output(prepared(network(head)))
    assert (found.position, found.count) == (position, count)
    rows = np.array([[1, 5, 2]], np.float32) if count else np.array([1])
    assert found.chosen({position: rows}).tolist() == [1]


@pytest.mark.parametrize("head", ["two_maps", "split_end", "attention", "single_shot"])
def test_maps_choose_no_class(head: str) -> None:
    assert class_output(prepared(network(head))) is None


def test_the_noise_is_that_of_the_worst_output() -> None:
    exact = [np.ones(4, np.float32), np.arange(4), np.ones(4, np.float32)]
    noise = OutputNoise()
    noise.update(exact, [exact[0] * np.float32(1.01), exact[1] + 9, exact[2] * np.float32(1.1)])
    assert noise.worst.decibels == pytest.approx(20, abs=0.01)
    unchanged = OutputNoise()
    unchanged.update(exact, exact)
    assert unchanged.worst.decibels == np.inf


@pytest.mark.slow
def test_all_heads_at_once(tmp_path: Path) -> None:
    report = quantized(network(*HEADS), tmp_path, "int8", min_agreement=50)
    assert all(difference.agrees for difference in report.differences)
    assert report.quantization.integer_layers > 20


@pytest.mark.slow
@pytest.mark.parametrize("format", ["int8", "bf16", "int8-weights", "int4-weights"])
@pytest.mark.parametrize("head", HEADS)
def test_each_head_in_each_format(head: str, format: str, tmp_path: Path) -> None:
    options = {} if format in ("int8", "bf16") else {"min_weights": 1}
    report = quantized(network(head), tmp_path, format, **options)
    assert all(difference.agrees for difference in report.differences)


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_each_head_with_a_bound(head: str, tmp_path: Path) -> None:
    model = network(head)
    if class_output(prepared(model)) is None:
        with pytest.raises(ModelError, match="a row of scores"):
            quantized(model, tmp_path, "int8", min_agreement=50)
    else:
        report = quantized(model, tmp_path, "int8", min_agreement=50)
        assert report.quantization.agreement >= 0.5
