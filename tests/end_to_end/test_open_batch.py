"""Modules whose batch is chosen with each run, beside modules of each batch alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import tinsmith
from tinsmith import Range
from tinsmith.compiler.cli import app
from tinsmith.compiler.evaluate.verify import verify

HIGHEST = 5
_GENERATOR = np.random.default_rng(0)
Weights = dict[str, np.ndarray]


def weight(*shape: int) -> np.ndarray:
    scale = np.sqrt(np.prod(shape[1:]))
    return (_GENERATOR.standard_normal(shape) / scale).astype(np.float32)


def model(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: list[str],
    weights: Weights,
    element: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(n, element, shape) for n, shape in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(array, n) for n, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def perceptron() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("Gemm", ["t", "w2"], ["y"]),
    ]
    weights = {"w1": weight(30, 70), "b1": weight(70), "w2": weight(70, 10)}
    return model("perceptron", nodes, {"x": ["n", 30]}, ["y"], weights)


def convolutions() -> onnx.ModelProto:
    """Strided, 3x3 (Winograd's), depthwise, pointwise, pooled, and a residual."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1] * 4),
        helper.make_node("Conv", ["c2", "wd"], ["cd"], pads=[1] * 4, group=16),
        helper.make_node("Conv", ["cd", "w3"], ["c3"]),
        helper.make_node("Add", ["c3", "r1"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["p"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w4"], ["l"]),
        helper.make_node("Softmax", ["l"], ["y"]),
    ]
    weights = {
        "w1": weight(16, 3, 3, 3), "w2": weight(16, 16, 3, 3), "wd": weight(16, 1, 3, 3),
        "w3": weight(16, 16, 1, 1), "w4": weight(16, 7),
    }  # fmt: skip
    return model("convolutions", nodes, {"x": ["batch", 3, 30, 30]}, ["y"], weights)


def encoder(width: int = 32, heads: int = 2, length: int = 9) -> onnx.ModelProto:
    """Attention with a mask, layer normalisation, a mean over the tokens."""
    one = helper.make_node
    nodes = [
        one("Gather", ["table", "ids"], ["e"]), one("Add", ["e", "places"], ["x"]),
        one("Unsqueeze", ["mask", "axes"], ["m1"]), one("Cast", ["m1"], ["m2"], to=1),
        one("Sub", ["m2", "one"], ["m3"]), one("Mul", ["m3", "large"], ["bias"]),
    ]  # fmt: skip
    for name in "qkv":
        nodes += [
            one("MatMul", ["x", f"w{name}"], [f"{name}0"]),
            one("Reshape", [f"{name}0", "split"], [f"{name}1"]),
            one("Transpose", [f"{name}1"], [name], perm=[0, 2, 3, 1] if name == "k" else
                [0, 2, 1, 3]),
        ]  # fmt: skip
    nodes += [
        one("MatMul", ["q", "k"], ["s0"]), one("Add", ["s0", "bias"], ["s"]),
        one("Softmax", ["s"], ["p"]), one("MatMul", ["p", "v"], ["o0"]),
        one("Transpose", ["o0"], ["o1"], perm=[0, 2, 1, 3]), one("Reshape", ["o1", "join"], ["o"]),
        one("MatMul", ["o", "wo"], ["a0"]), one("Add", ["a0", "x"], ["a"]),
        one("LayerNormalization", ["a", "scale"], ["hidden"]),
        one("ReduceMean", ["hidden"], ["pooled"], axes=[1], keepdims=0),
    ]  # fmt: skip
    weights = {
        "table": weight(20, width), "places": weight(length, width), "wo": weight(width, width),
        "axes": np.array([1, 2]), "one": np.float32(1), "large": np.float32(1e9),
        "split": np.array([0, length, heads, width // heads]),
        "join": np.array([0, length, width]), "scale": np.ones(width, np.float32),
        **{f"w{name}": weight(width, width) for name in "qkv"},
    }  # fmt: skip
    shapes: dict[str, list[int | str]] = {"ids": ["batch", length], "mask": ["batch", length]}
    return model("encoder", nodes, shapes, ["hidden", "pooled"], weights, TensorProto.INT64)


def recurrent(hidden: int = 20) -> onnx.ModelProto:
    """An LSTM, whose tensors have time before the batch, and so has one result."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["xt", "w", "r", "b"], ["ys", "yh"], hidden_size=hidden),
        helper.make_node("Squeeze", ["ys", "one"], ["time_first"]),
        helper.make_node("Squeeze", ["yh", "zero"], ["last"]),
    ]
    weights = {
        "w": weight(1, 4 * hidden, 12), "r": weight(1, 4 * hidden, hidden),
        "b": weight(1, 8 * hidden), "one": np.array([1]), "zero": np.array([0]),
    }  # fmt: skip
    return model("recurrent", nodes, {"x": ["batch", 6, 12]}, ["time_first", "last"], weights)


def quantized() -> onnx.ModelProto:
    """Convolutions and a product in int8, as a file stores them between Q and DQ."""
    one = helper.make_node
    weights: Weights = {"s": np.float32(0.05), "z": np.int8(0)}
    nodes = []

    def through_bytes(name: str) -> str:
        nodes.append(one("QuantizeLinear", [name, "s", "z"], [f"{name}_q"]))
        nodes.append(one("DequantizeLinear", [f"{name}_q", "s", "z"], [f"{name}_d"]))
        return f"{name}_d"

    def weights_of(name: str, *shape: int) -> str:
        weights[f"{name}_q"] = _GENERATOR.integers(-90, 90, shape).astype(np.int8)
        weights[f"{name}_s"] = np.float32(0.01)
        nodes.append(one("DequantizeLinear", [f"{name}_q", f"{name}_s", "z"], [name]))
        return name

    source = through_bytes("x")
    nodes.append(one("Conv", [source, weights_of("w1", 16, 8, 3, 3)], ["c1"], pads=[1] * 4))
    nodes.append(one("Relu", ["c1"], ["r1"]))
    nodes.append(one("Conv", [through_bytes("r1"), weights_of("w2", 16, 16, 1, 1)], ["c2"]))
    nodes.append(one("GlobalAveragePool", [through_bytes("c2")], ["g"]))
    nodes.append(one("Flatten", ["g"], ["f"]))
    nodes.append(one("MatMul", [through_bytes("f"), weights_of("w3", 16, 5)], ["y"]))
    return model("quantized", nodes, {"x": ["batch", 8, 10, 10]}, ["y"], weights)


MODELS = {f.__name__: f for f in (perceptron, convolutions, encoder, recurrent, quantized)}


def shapes(proto: onnx.ModelProto, batch: int | Range) -> dict[str, tuple[int | Range, ...]]:
    return {
        value.name: (batch, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:]))
        for value in proto.graph.input
    }


def inputs_of(proto: onnx.ModelProto) -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    found = []
    for value in proto.graph.input:
        size = [HIGHEST, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])]
        if value.type.tensor_type.elem_type == TensorProto.INT64:
            found.append(generator.integers(0, 2 if value.name == "mask" else 20, size))
        else:
            found.append(generator.standard_normal(size).astype(np.float32))
    return found


@pytest.fixture(scope="module", params=MODELS, ids=str)
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[onnx.ModelProto, Path]:
    make: Callable[[], onnx.ModelProto] = MODELS[request.param]
    proto = make()
    folder = tmp_path_factory.mktemp(request.param)
    onnx.save(proto, folder / "model.onnx")
    report = tinsmith.compile_to(
        folder / "model.onnx",
        folder / "module",
        shapes=shapes(proto, Range(1, HIGHEST)),
        static_library=False,
        threads=2,
    )
    assert report.manifest.form == "self-contained"
    assert all(difference.agrees for difference in report.differences)
    return proto, folder


def test_every_batch_has_the_bits_of_its_own_module(compiled: tuple[onnx.ModelProto, Path]) -> None:
    proto, folder = compiled
    arrays = inputs_of(proto)
    with tinsmith.load(folder / "module", threads=2) as module:
        for batch in (HIGHEST, 1, 2, 3, 1):  # what a larger batch left in memory does not matter
            chosen = [array[:batch].copy() for array in arrays]
            alone = tinsmith.compile(
                proto, shapes=shapes(proto, batch), runner=False, static_library=False,
                golden=False, threads=2,
            )  # fmt: skip
            for got, expected in zip(module.run(chosen), alone.run(chosen), strict=True):
                np.testing.assert_array_equal(got, expected)


def test_it_proves_itself_at_three_sizes(compiled: tuple[onnx.ModelProto, Path]) -> None:
    _, folder = compiled
    report = verify(folder / "module", folder / "model.onnx", samples=1)
    assert report.agrees
    tried = [check.inputs.rpartition(" ")[2] for check in report.checks]
    assert tried == ["1", "3", "5", "1", "3", "5"]
    runner = folder / "module" / "tinsmith-run"
    done = subprocess.run([runner, "verify"], capture_output=True, text=True, check=True)
    assert [line.split()[1] for line in done.stdout.splitlines() if ":" not in line] == [*"135"]


def test_a_size_out_of_bounds_is_one_line(compiled: tuple[onnx.ModelProto, Path]) -> None:
    proto, folder = compiled
    with tinsmith.load(folder / "module", threads=1) as module:
        dimension = module.manifest.dims[0]
        assert (dimension.low, dimension.high) == (1, HIGHEST)
        name = module.inputs[0].name
        assert module.inputs[0].shape[0] == dimension.name
        for batch in (0, HIGHEST + 1):
            arrays = [np.zeros((batch, *a.shape[1:]), a.dtype) for a in inputs_of(proto)]
            with pytest.raises(tinsmith.InputError) as caught:
                module.run(arrays)
            told = f"input '{name}': {dimension.name} is {batch}, the module takes 1 to {HIGHEST}"
            assert str(caught.value) == told


def test_inputs_share_the_batch_and_outputs_have_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    proto = encoder()
    folder = tmp_path_factory.mktemp("encoder")
    tinsmith.compile_to(proto, folder / "m", batch=Range(1, 3), runner=False, golden=False)
    with tinsmith.load(folder / "m", threads=1) as module:
        ids, mask = np.ones((3, 9), np.int64), np.ones((2, 9), np.int64)
        with pytest.raises(tinsmith.InputError, match=r"input 'mask': expected shape \(batch, 9\)"):
            module.run([ids, mask])
        filled = [np.zeros((2, 9, 32), np.float32), np.zeros((2, 32), np.float32)]
        module.run([ids[:2], mask], outputs=filled)
        assert all(array.any() for array in filled)
        with pytest.raises(tinsmith.InputError, match="output 'hidden'"):
            module.run([ids, ids], outputs=filled)
        assert module.golden() is None


def test_the_command_line(tmp_path: Path) -> None:
    onnx.save(perceptron(), tmp_path / "m.onnx")
    commands = CliRunner()

    def said(*words: str) -> str:
        done = commands.invoke(app, list(words))
        assert done.exit_code == 0, done.output
        return done.output

    module = str(tmp_path / "out")
    report = json.loads(
        said("compile", str(tmp_path / "m.onnx"), "--batch", "1..4", "-o", module, "--json")
    )
    assert report["form"] == "self-contained"
    np.save(tmp_path / "x.npy", np.ones((3, 30), np.float32))
    ran = json.loads(said("run", module, "--input", str(tmp_path / "x.npy"), "--json"))
    assert ran["outputs"]["y"]["shape"] == [3, 10]
    assert "golden vectors, n 4" in said("verify", module)
    assert json.loads(said("inspect", module, "--json"))["inputs"][0]["shape"] == ["n", 30]
    said("bench", module, "--runs", "2", "--dims", "n=3", "--json")
    refused = commands.invoke(app, ["bench", module, "--runs", "2", "--dims", "n=5"])
    assert refused.exit_code != 0 and "n is 5, the module takes 1 to 4" in refused.output
    runner = tmp_path / "out" / "tinsmith-run"
    subprocess.run(
        [runner, "--dims", "n=3", "run", "-o", f"{tmp_path}/", tmp_path / "x.npy"],
        check=True, capture_output=True,
    )  # fmt: skip
    with tinsmith.load(module) as loaded:
        expected = loaded.run([np.ones((3, 30), np.float32)])[0]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)
    wrong = subprocess.run(
        [runner, "--dims", "n=9", "bench", "1"], check=False, capture_output=True, text=True
    )
    assert wrong.returncode == 2 and "expected a number from 1 to 4" in wrong.stderr


def test_what_mixes_the_batch_is_refused_by_its_name(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Softmax", ["x"], ["s"], name="over_the_batch", axis=0),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    proto = model("mixing", nodes, {"x": ["n", 3]}, ["y"], {"w": weight(3, 2)})
    with pytest.raises(tinsmith.ModelError, match=r"n cannot be a range: what node over_the_batch"):
        tinsmith.compile_to(proto, tmp_path / "m", shapes={"x": (Range(1, 4), 3)})
    assert not (tmp_path / "m").exists()


def test_a_model_that_computes_with_its_batch_size_is_found_out(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["size"]),
        helper.make_node("Cast", ["size"], ["divisor"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["x", "divisor"], ["y"]),
    ]
    proto = model("dividing", nodes, {"x": ["n", 3]}, ["y"], {"zero": np.array(0)})
    with pytest.raises(tinsmith.VerificationError, match="output y does not agree"):
        tinsmith.compile_to(proto, tmp_path / "m", shapes={"x": (Range(1, 4), 3)})


_GUARDED = """
import ctypes, mmap, sys
import numpy as np
import tinsmith

libc = ctypes.CDLL(None, use_errno=True)

def guarded(shape, dtype):
    # An array that ends where memory does: behind it is a page that nobody may touch.
    size, page = int(np.prod(shape)) * np.dtype(dtype).itemsize, mmap.PAGESIZE
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(start + pages * page), page, 0) == 0
    return np.frombuffer(memory, dtype, int(np.prod(shape)), pages * page - size).reshape(shape)

with tinsmith.load(sys.argv[1], threads=2) as module:
    for batch in range(1, module.manifest.dims[0].high + 1):
        sized = module.manifest.sized({module.manifest.dims[0].name: batch})
        arrays = [guarded(t.shape, t.dtype) for t in sized.inputs]
        module.run(arrays, outputs=[guarded(t.shape, t.dtype) for t in sized.outputs])
print("untouched")
"""


def test_nothing_behind_the_caller_s_tensors_is_touched(
    compiled: tuple[onnx.ModelProto, Path],
) -> None:
    _, folder = compiled
    done = subprocess.run(
        [sys.executable, "-c", _GUARDED, folder / "module"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "untouched\n", done.stderr
