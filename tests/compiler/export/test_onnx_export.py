"""Relax graphs as ONNX models: read again they compute the same, and what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import tvm
from onnx import TensorProto, helper
from tvm import relax
from typer.testing import CliRunner

from tinsmith.compiler.cli import app
from tinsmith.compiler.demo import IMAGES
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.evaluate.accuracy import LabelledImages
from tinsmith.compiler.evaluate.stages import run_stage
from tinsmith.compiler.export.onnx import to_onnx
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pruning.pruner import readable
from tinsmith.targets.registry import get_target


def imported_again(module: tvm.IRModule, inputs: list[str], outputs: list[str]) -> tvm.IRModule:
    return import_onnx(to_onnx(module, inputs, outputs)).module


def assert_same(one: tvm.IRModule, other: tvm.IRModule, *inputs: np.ndarray) -> None:
    native = get_target("native")
    pairs = zip(run_stage(one, inputs, native), run_stage(other, inputs, native), strict=True)
    for expected, actual in pairs:
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def _model(*nodes: onnx.NodeProto, shape: tuple[int, ...], constants: dict) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


MODELS = {
    "convolutions": _model(
        node("Conv", "x w", "a", pads=[1, 0, 2, 1], strides=[2, 1]),
        node("BatchNormalization", "a g b m v", "n"),
        node("Clip", "n low high", "c"),
        node("MaxPool", "c", "p", kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1),
        node("AveragePool", "p", "q", kernel_shape=[2, 2], pads=[0, 1, 1, 0]),
        node("ConvTranspose", "q t", "u", strides=[2, 2], output_padding=[1, 0]),
        node("GlobalAveragePool", "u", "o"),
        node("Flatten", "o", "f"),
        node("Softmax", "f", "y", axis=1),
        shape=(1, 3, 12, 11),
        constants={
            "w": _random(6, 3, 3, 3),
            **{name: _random(6) for name in ("g", "b", "m")},
            "v": np.abs(_random(6)) + np.float32(0.5),
            "t": _random(6, 5, 3, 2),
            "low": np.float32(-0.5),
            "high": np.float32(2),
        },
    ),
    "a transformer's block": _model(
        node("LayerNormalization", "x g b", "n", axis=-1),
        node("MatMul", "n w", "a"),
        helper.make_node("Split", ["a"], ["q", "k", "v"], axis=-1),
        node("Transpose", "k", "kt", perm=[0, 2, 1]),
        node("MatMul", "q kt", "s"),
        node("Softmax", "s", "p", axis=-1),
        node("MatMul", "p v", "z"),
        node("Tanh", "z", "h"),
        node("Div", "h root", "d"),
        node("Erf", "d", "e"),
        node("Add", "e unit", "e1"),
        node("Mul", "h e1", "g1"),
        node("Mul", "g1 half", "gelu"),
        node("Concat", "gelu x", "c", axis=-1),
        node("ReduceMean", "c", "r", axes=[1], keepdims=0),
        node("LeakyRelu", "r", "l", alpha=0.2),
        node("Unsqueeze", "l one", "y"),
        shape=(1, 5, 8),
        constants={
            "g": _random(8),
            "b": _random(8),
            "w": _random(8, 12),
            "one": np.array([1], np.int64),
            "root": np.float32(np.sqrt(2)),
            "unit": np.float32(1),
            "half": np.float32(0.5),
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_that_is_written_and_read_again_computes_the_same(name: str) -> None:
    model = MODELS[name]
    imported = import_onnx(model)
    module = readable(imported.module)
    shape = imported.input_shapes[0]
    if "Erf" in {node.op_type for node in model.graph.node}:
        assert "R.nn.gelu" in module.script()
    assert_same(imported.module, imported_again(module, ["x"], ["y"]), _random(*shape))
    written = to_onnx(module, ["x"], ["y"])
    assert [value.name for value in written.graph.input] == ["x"]
    assert [value.name for value in written.graph.output] == ["y"]


def test_what_cannot_be_written_is_named() -> None:
    x = relax.Var("x", relax.TensorType((1, 4), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            made = builder.emit_output(relax.op.cumsum(x, 1))
        builder.emit_func_output(made)
    with pytest.raises(ModelError, match=r"relax\.cumsum \(.*\) cannot be written as ONNX"):
        to_onnx(builder.get(), ["x"], ["y"])


def test_prune_writes_a_model_that_compile_takes(residual_model_file: Path, tmp_path: Path) -> None:
    images = LabelledImages.read(IMAGES).images[:60, None].astype("float32") / np.float32(255)
    data, out = tmp_path / "images.npy", tmp_path / "pruned.onnx"
    np.save(data, images)
    arguments = [
        *("prune", str(residual_model_file), "--ratio", "0.5", "--threads", "1"),
        *("--shape", "image=1,1,28,28"),
        *("--prune-criterion", "l2", "--recover", "none", "-o", str(out)),
        *("--calibration", str(data), "--samples", "30", "--json"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert out.stat().st_size < 0.8 * residual_model_file.stat().st_size
    runtime = pytest.importorskip("onnxruntime")
    # Every other image was read, and all of those judged.
    chosen = []
    for path in (residual_model_file, out):
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        rows = [session.run(None, {"image": image[None]})[0][0] for image in images[::2]]
        chosen.append(np.argmax(rows, axis=1))
    assert np.mean(chosen[0] == chosen[1]) == pytest.approx(report["agreement"])
    for change, message in (
        (["-o", "pruned.bin"], "ends in .onnx"),
        (["--flops", "0.5"], "give one goal"),
        (["--ratio", "2"], "expected a number between 0 and 1"),
    ):
        failed = CliRunner().invoke(app, [*arguments[:-1], *change])
        assert failed.exit_code == 2
        assert message in failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1
