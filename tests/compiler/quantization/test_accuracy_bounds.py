"""Bounds on the loss of accuracy: the sensitive layer stays in float, and no more than needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import tinsmith
from tinsmith.compiler.cli import app
from tinsmith.compiler.errors import (
    ConfigError,
    InputError,
    ModelError,
    TinsmithError,
    VerificationError,
)
from tinsmith.compiler.evaluate.classes import Bounds, Verdict
from tinsmith.compiler.quantization.sensitivity import fewest
from tinsmith.targets.number_formats import float_precisions
from tinsmith.targets.registry import get_target


def _perceptron(path: Path, outlier: bool = True) -> Path:
    """x (1, 16) -> 3 layers -> scores (1, 6); what layer 2 reads has one huge, idle channel."""
    random = np.random.default_rng(7)
    weights = [random.standard_normal(shape) for shape in ((16, 24), (24, 24), (24, 6))]
    bias = np.zeros(24)
    if outlier:
        bias[0], weights[1][0] = 3000, 0
    initializers = [
        numpy_helper.from_array(w.astype(np.float32), f"w{i}") for i, w in enumerate(weights)
    ]
    initializers.append(numpy_helper.from_array(bias.astype(np.float32), "b"))
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["p0"]),
        helper.make_node("Add", ["p0", "b"], ["s0"]),
        helper.make_node("Relu", ["s0"], ["h0"]),
        helper.make_node("MatMul", ["h0", "w1"], ["p1"]),
        helper.make_node("Relu", ["p1"], ["h1"]),
        helper.make_node("MatMul", ["h1", "w2"], ["scores"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [value("x", TensorProto.FLOAT, [1, 16])],
        [value("scores", TensorProto.FLOAT, [1, 6])],
        initializers,
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _perceptron(tmp_path_factory.mktemp("model") / "perceptron.onnx")


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.random.default_rng(8).standard_normal((64, 16)).astype(np.float32)


# What a layer that is kept out of integers computes in on this machine.
_KEPT = "bfloat16" if "bfloat16" in float_precisions(get_target("native")) else "float"
_OPTIONS = {"equalize": False, "observer": "minmax", "fallback": False}


def _compiled(model: Path, folder: Path, **options):
    quantization = tinsmith.QuantizationConfig(**{**_OPTIONS, **options})
    return tinsmith.compile_to(
        model, folder, quantization=quantization, runner=False, static_library=False
    )


def test_the_sensitive_layer_stays_in_float(tmp_path: Path, model: Path, samples) -> None:
    report = _compiled(
        model, tmp_path / "out", calibration=samples[:32], evaluation=samples, min_agreement=97
    ).quantization
    assert [layer.computes for layer in report.layers] == ["integer", _KEPT, "integer"]
    kept = report.layers[1]
    assert kept.reason == "for accuracy"
    assert kept.sensitivity > 0.05
    assert kept.integer_seconds is not None and kept.cost_seconds is not None
    assert report.agreement >= 0.97 and report.evaluated_samples == 64
    assert report.top1 is None
    told = f"1 of 3 layers, the most sensitive ones, compute in {_KEPT}"
    assert any(note.startswith(told) for note in report.notes)
    # The module itself agrees that often, not just a model of it.
    with tinsmith.load(tmp_path / "out") as module, tinsmith.compile(model) as exact:
        same = [
            module.run([x[None]])[0].argmax() == exact.run([x[None]])[0].argmax() for x in samples
        ]
    assert np.mean(same) == report.agreement


def test_a_bound_of_one_hundred_percent_can_be_held(tmp_path: Path, model: Path, samples) -> None:
    report = _compiled(
        model, tmp_path / "out", calibration=samples, observer="percentile", min_agreement=100
    ).quantization
    assert report.agreement == 1.0


def test_labels_bound_the_drop(tmp_path: Path, model: Path, samples) -> None:
    with tinsmith.compile(model) as exact:
        right = np.array([exact.run([x[None]])[0].argmax() for x in samples])
    data = tmp_path / "data.npz"
    np.savez(data, x=samples, labels=right)
    report = _compiled(
        model, tmp_path / "out", calibration=samples, evaluation=str(data), max_drop=3
    ).quantization
    assert report.float_top1 == 1.0
    assert report.top1 == report.agreement >= 0.97
    assert report.layers[1].computes == _KEPT
    assert any("chosen by the samples that the figure is of" in n for n in report.notes)


def test_without_other_data_some_are_held_out(tmp_path: Path, model: Path, samples) -> None:
    report = _compiled(model, tmp_path / "a", calibration=samples, min_agreement=50).quantization
    assert report.evaluated_samples == 16 and "held-out" in report.evaluated_on
    assert any("agreement rests on 16 held-out samples" in note for note in report.notes)
    few = _compiled(model, tmp_path / "b", calibration=samples[:8], min_agreement=50).quantization
    assert few.evaluated_samples == 8
    assert any("too few to hold any out" in note for note in few.notes)
    zero = _compiled(model, tmp_path / "c", calibration=0 * samples[:8]).quantization
    assert any("is zero in all samples" in note for note in zero.notes)


def test_what_is_exact_enough_is_left_in_integers(tmp_path: Path, samples) -> None:
    even = _perceptron(tmp_path / "even.onnx", outlier=False)
    report = _compiled(even, tmp_path / "out", calibration=samples, min_agreement=50).quantization
    assert report.integer_layers == 3
    assert all(layer.sensitivity is None for layer in report.layers)


def test_a_model_without_scores_is_refused(tmp_path: Path, small_model_file: Path) -> None:
    path = tmp_path / "map.onnx"
    model = onnx.load(small_model_file)
    del model.graph.node[3:]
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info("second", TensorProto.FLOAT, ["batch", 16, 3, 3])
    )
    onnx.save(model, path)
    images = np.zeros((2, 3, 8, 8), np.float32) + np.arange(8, dtype=np.float32)
    with pytest.raises(ModelError, match=r"float32 \(1, 16, 3, 3\), none of them a row of scores"):
        _compiled(path, tmp_path / "out", calibration=images, min_agreement=99)


def test_a_format_without_mixtures_is_held_to_the_bound(tmp_path: Path, model, samples) -> None:
    with pytest.raises(VerificationError, match=r"the bound does not hold: [0-9.]+% agree"):
        _compiled(
            model,
            tmp_path / "out",
            format="int4-weights",
            min_weights=1,
            calibration=samples,
            min_agreement=100,
        )


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"max_drop": -1}, ConfigError, "--max-drop -1: expected points"),
        ({"max_drop": float("nan")}, ConfigError, "--max-drop nan: expected points"),
        ({"min_agreement": 0.99}, ConfigError, "--min-agreement 0.99: expected a percentage"),
        ({"min_agreement": 101}, ConfigError, "--min-agreement 101: expected a percentage"),
        ({"max_drop": 1}, ConfigError, "--max-drop needs the classes"),
        ({"labels": np.zeros(5, int)}, InputError, "5 labels for 64 samples"),
        ({"labels": np.full(64, 6)}, InputError, "class 6, but the model has 6 classes"),
        ({"evaluation": np.zeros((0, 16))}, InputError, "set of samples is empty"),
        ({"evaluation": np.full((2, 16), np.nan, "float32")}, InputError, "holds NaN"),
        ({"evaluation": "random"}, ConfigError, "random data means nothing"),
        ({"evaluation": "nowhere.npz"}, InputError, "--evaluation nowhere.npz: no such file"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, model: Path, samples, options, kind: type[TinsmithError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        _compiled(model, tmp_path / "out", calibration=samples, **options)
    assert "\n" not in str(caught.value)


def test_options_of_accuracy_need_quantising(model: Path) -> None:
    result = CliRunner().invoke(app, ["compile", str(model), "-o", "out", "--labels", "x.npy"])
    assert result.exit_code == 2
    assert "--labels is for quantising: add --quantize int8" in result.output


@pytest.mark.parametrize("needed", range(1, 14))
def test_the_fewest_are_found_with_few_trials(needed: int) -> None:
    trials: list[int] = []

    def holds(count: int) -> bool:
        trials.append(count)
        return count >= needed

    assert fewest(13, holds) == needed
    assert len(trials) <= 7 and len(set(trials)) == len(trials)


def test_bounds() -> None:
    verdict = Verdict(200, agreement=0.995, top1=0.79, float_top1=0.80)
    assert verdict.drop == pytest.approx(1.0)
    assert Bounds(min_agreement=99.5).hold(verdict)
    assert not Bounds(min_agreement=99.6).hold(verdict)
    assert Bounds(max_drop=1.0).hold(verdict)
    assert not Bounds(min_agreement=99.0, max_drop=0.9).hold(verdict)
    assert not Bounds()
