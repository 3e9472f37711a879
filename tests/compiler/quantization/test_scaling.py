"""Which channels are scaled before quantising is found on the calibration data."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import tinsmith
from tinsmith.compiler.cli import app
from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.quantization.config import AUTO, parse_choice

_RANDOM = np.random.default_rng(3)


def _weights(*shape: int) -> np.ndarray:
    return (_RANDOM.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


def _model(nodes, shape, out, parameters) -> ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "small",
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(array, name) for name, array in parameters.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def block() -> ModelProto:
    """Pre-norm: layer normalisation with three outlier channels, read by a product."""
    gamma = np.ones(32, np.float32)
    gamma[[3, 9, 20]] = 60
    inner = _weights(32, 48)
    inner[[3, 9, 20]] /= 60
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], axis=-1),
        helper.make_node("MatMul", ["n", "w"], ["p"]),
        helper.make_node("Relu", ["p"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["q"]),
        helper.make_node("Add", ["q", "x"], ["y"]),
    ]
    parameters = {
        "gamma": gamma,
        "beta": np.zeros(32, np.float32),
        "w": inner,
        "v": _weights(48, 32),
    }
    return _model(nodes, [1, 16, 32], [1, 16, 32], parameters)


def separable() -> ModelProto:
    """Depthwise between two convolutions, whose channels have ranges from 0.05 to 20."""
    spread = np.logspace(-1.3, 1.3, 16).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"]),
        helper.make_node("Relu", ["p"], ["h"]),
        helper.make_node("Conv", ["h", "d"], ["q"], group=16, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["q"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["y"]),
    ]
    parameters = {
        "a": _weights(8, 16, 1, 1).transpose(1, 0, 2, 3) * spread[:, None, None, None],
        "d": _weights(9, 16).T.reshape(16, 1, 3, 3) / spread[:, None, None, None],
        "b": _weights(16, 8, 1, 1).transpose(1, 0, 2, 3),
    }
    parameters = {name: np.ascontiguousarray(array) for name, array in parameters.items()}
    return _model(nodes, [1, 8, 12, 12], [1, 8, 12, 12], parameters)


def report(tmp_path, model: ModelProto, **options):
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    samples = np.random.default_rng(0).standard_normal((24, *shape[1:])).astype(np.float32)
    quantization = tinsmith.QuantizationConfig(
        calibration=samples, observer="minmax", fallback=False, **options
    )
    compiled = tinsmith.compile_to(
        model, tmp_path / "m", quantization=quantization, runner=False, static_library=False
    )
    return compiled.quantization


@pytest.mark.parametrize(
    ("make", "option", "told"),
    [
        (block, "smooth", "equalize + smooth is best of equalize "),
        (separable, "equalize", "equalize is best of none "),
    ],
)
def test_the_better_way_is_chosen_and_told(tmp_path, make, option, told) -> None:
    model = make()
    chosen = report(tmp_path, model)
    without = report(tmp_path, model, **{option: False})
    assert np.isfinite(without.output_sqnr_db)
    assert chosen.output_sqnr_db > without.output_sqnr_db + 3
    assert chosen.notes[0].startswith(f"channels scaled before quantising: {told}")
    assert not any("channels scaled" in note for note in without.notes)


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="smooth often: expected True, False or auto"):
        tinsmith.QuantizationConfig(calibration="random", smooth="often")


def test_the_command_line_switches_them(tmp_path) -> None:
    assert [parse_choice("--smooth", text) for text in ("on", "off", "auto")] == [True, False, AUTO]
    path = tmp_path / "block.onnx"
    path.write_bytes(block().SerializeToString())
    arguments = ["compile", str(path), "-o", str(tmp_path / "m"), "--quantize", "int8"]
    arguments += ["--calibration", "random", "--smooth", "often"]
    result = CliRunner().invoke(app, arguments)
    assert "--smooth often: choose from on, off, auto" in f"{result.output} {result.exception}"
