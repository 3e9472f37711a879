"""Fusion of lowered kernels, and what has to stay apart."""

from __future__ import annotations

import numpy as np
import tvm
from graph_checks import assert_computes_the_same, operators
from tvm import relax

from tinsmith.passes.graph import Fuse, Legalize

_RANDOM = np.random.default_rng(0)


def _array(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype("float32")


def _lower(module: tvm.IRModule) -> tvm.IRModule:
    return Fuse()(Legalize({})(module))


def test_matmul_takes_bias_activation_and_residual() -> None:
    x, residual = (relax.Var(n, relax.TensorType((4, 8), "float32")) for n in ("x", "residual"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, residual]):
        with builder.dataflow():
            y = builder.emit(relax.op.matmul(x, relax.const(_array(8, 8))))
            y = builder.emit(relax.op.add(y, relax.const(_array(8))))
            y = builder.emit(relax.op.nn.gelu(y))
            y = builder.emit_output(relax.op.add(y, residual))
        builder.emit_func_output(y)
    after = assert_computes_the_same(_lower, builder.get())
    assert len(operators(after)) == 1


def test_a_gate_is_not_computed_for_each_pixel() -> None:
    x = relax.Var("x", relax.TensorType((1, 6, 6, 8), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            pooled = builder.emit(relax.op.mean(x, [1, 2], keepdims=True))
            weights = relax.const(_array(1, 1, 8, 8))
            gate = builder.emit(
                relax.op.nn.conv2d(pooled, weights, data_layout="NHWC", kernel_layout="HWIO")
            )
            gate = builder.emit(relax.op.sigmoid(gate))
            scaled = builder.emit(relax.op.multiply(x, gate))
            y = builder.emit_output(relax.op.nn.relu(scaled))
        builder.emit_func_output(y)
    after = assert_computes_the_same(_lower, builder.get())
    names = operators(after)
    assert len(names) == 3
    assert "multiply" in names[2] and "relu" in names[2] and "conv" not in names[2]


def test_enlarged_data_is_computed_before() -> None:
    x = relax.Var("x", relax.TensorType((1, 4, 4, 8), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            a = builder.emit(relax.op.exp(x))
            b = relax.op.image.resize2d(
                a,
                (8, 8),
                layout="NHWC",
                method="nearest_neighbor",
                coordinate_transformation_mode="asymmetric",
                rounding_method="floor",
            )
            y = builder.emit_output(builder.emit(b))
        builder.emit_func_output(y)
    after = assert_computes_the_same(_lower, builder.get())
    assert operators(after) == ["tir_exp", "resize2d"]


def test_reshapes_stay_operators() -> None:
    x = relax.Var("x", relax.TensorType((4, 8), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            a = builder.emit(relax.op.nn.relu(x))
            b = builder.emit(relax.op.reshape(a, (8, 4)))
            y = builder.emit_output(relax.op.nn.softmax(b))
        builder.emit_func_output(y)
    assert operators(_lower(builder.get())) == ["relu", "reshape", "softmax"]


def test_bytes_are_widened_where_they_are_read() -> None:
    x = relax.Var("x", relax.TensorType((1, 4, 4, 8), "uint8"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            scale, zero = relax.const(np.float32(0.5)), relax.const(np.int32(3))
            wide = builder.emit(relax.op.dequantize(x, scale, zero, out_dtype="float32"))
            large = relax.op.image.resize2d(wide, relax.ShapeExpr([8, 8]), layout="NHWC")
            y = builder.emit_output(large)
        builder.emit_func_output(y)
    assert len(operators(_lower(builder.get()))) == 1
