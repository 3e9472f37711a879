"""Products of codes with zero points known early or late: the kernel's dtypes, exact results."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax

sys.path.insert(0, str(Path(__file__).parents[1] / "graph"))
from graph_checks import execute

from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pipeline import lowering
from tinsmith.passes.graph.tensors import element_type, operator_name
from tinsmith.passes.quantize.lower_integers import LowerIntegers
from tinsmith.targets.arm.backend import FORMATS as ARM
from tinsmith.targets.registry import get_target

_RANDOM = np.random.default_rng(11)
_SPEC = get_target("x86-64-v3")
_NUMBER = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8}


def codes(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    limits = np.iinfo(dtype)
    return _RANDOM.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


def integer_model(
    operator: str,
    data: np.ndarray,
    weights: np.ndarray,
    weight_zero: np.ndarray | None,
    *,
    constant_zero: np.ndarray | None = None,
    **attributes: object,
) -> onnx.ModelProto:
    """`operator` of `x` and constant weights; the zero point of `x` is an input unless given."""
    inputs = [helper.make_tensor_value_info("x", _NUMBER[str(data.dtype)], data.shape)]
    stored = {"w": weights}
    if weight_zero is not None:
        stored["wz"] = weight_zero
    if constant_zero is None:
        inputs.append(helper.make_tensor_value_info("xz", _NUMBER[str(data.dtype)], ()))
    else:
        stored["xz"] = constant_zero
    names = ["x", "w", "xz", *(["wz"] if weight_zero is not None else [])]
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], **attributes)],
        "product",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def lowered(proto: onnx.ModelProto) -> tvm.IRModule:
    pipeline = lowering(_SPEC).until("store_exact_codes")
    return pipeline.run(import_onnx(proto).module).module


def run(module: tvm.IRModule, *inputs: np.ndarray) -> tuple[np.ndarray, set[str]]:
    """The result, and the arithmetics of the kernels of the products."""
    report = lowering(_SPEC).since("store_exact_codes").run(module)
    module, reports = report.fused, report.kernels
    used = {r.arithmetic for r in reports if r.template in ("convolution", "matmul", "channelwise")}
    assert not any(r.template == "unscheduled" for r in reports)
    return execute(module, list(inputs))[0], used


def product_dtypes(module: tvm.IRModule) -> list[tuple[str | None, ...]]:
    """Data, weights and result of every product of `main`."""
    found: list[tuple[str | None, ...]] = []
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            if operator_name(binding.value) in ("relax.matmul", "relax.nn.conv2d"):
                call = binding.value
                found.append((*map(element_type, call.args[:2]), element_type(call)))
    return found


@pytest.mark.parametrize(
    ("data", "weight", "offset"),
    [("uint8", "int8", None), ("int8", "int8", 5), ("uint8", "uint8", 128), ("int8", "uint8", 99)],
)
def test_matrix_product_with_zero_points_at_run_time(
    data: str, weight: str, offset: int | None
) -> None:
    x, w = codes((3, 7, 10), data), codes((10, 21), weight)
    zero, wz = codes((), data), None if offset is None else np.array(offset, weight)
    module = lowered(integer_model("MatMulInteger", x, w, wz))
    assert product_dtypes(module) == [("uint8", "int8", "int32")]
    actual, used = run(module, x, zero)
    wide = w.astype(int) - (0 if offset is None else offset)
    np.testing.assert_array_equal(actual, (x.astype(int) - zero) @ wide)
    assert used == {"avx2-int8"}


def test_zero_points_of_columns_leave_only_what_does_not_fit() -> None:
    w = codes((6, 3), "uint8")
    w[:, 0] = np.arange(0, 12, 2)  # fits int8 less 100, and so do all codes less 128
    w[0, 1:], w[1, 1:] = 0, 255
    wz = np.array([100, 128, 90], np.uint8)
    x, zero = codes((4, 6), "uint8"), np.array(7, np.uint8)
    module = lowered(integer_model("MatMulInteger", x, w, wz, constant_zero=zero))
    actual, _ = run(module, x)
    np.testing.assert_array_equal(actual, (x.astype(int) - 7) @ (w.astype(int) - wz))


@pytest.mark.parametrize("constant_zero", [False, True])
@pytest.mark.parametrize(
    ("weight", "offset", "group", "products"),
    [("int8", None, 1, 1), ("uint8", 128, 1, 1), ("uint8", 99, 1, 2), ("uint8", 99, 4, 2)],
)
def test_convolution_with_zero_points(
    weight: str, offset: int | None, group: int, products: int, constant_zero: bool
) -> None:
    x, w = codes((1, 4, 7, 6), "uint8"), codes((8 if group == 1 else 4, 4 // group, 3, 3), weight)
    zero, wz = codes((), "uint8"), None if offset is None else np.array(offset, weight)
    known = zero if constant_zero else None
    attributes = {"pads": [1, 0, 1, 2], "strides": [2, 1], "group": group}
    module = lowered(integer_model("ConvInteger", x, w, wz, constant_zero=known, **attributes))
    assert product_dtypes(module) == [("uint8", "int8", "int32")] * products
    actual, used = run(module, x, *([] if constant_zero else [zero]))
    wide = np.pad(x.astype(int) - zero, ((0, 0), (0, 0), (1, 1), (0, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), (2, 3))[:, :, ::2]
    centred = w.astype(int) - (offset or 0)
    if group == 1:
        expected = np.einsum("nchwij,ocij->nohw", windows, centred)
    else:
        expected = np.einsum("nchwij,cij->nchw", windows, centred[:, 0])
    np.testing.assert_array_equal(actual, expected)
    assert used <= {"avx2-int8", "widened-int8", "uint8"}


def test_product_of_two_computed_operands() -> None:
    a, b = codes((2, 5, 6), "uint8"), codes((2, 6, 9), "uint8")
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.UINT8, s)
        for n, s in (("a", a.shape), ("b", b.shape), ("az", ()), ("bz", ()))
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b", "az", "bz"], ["y"])],
        "product",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    az, bz = np.array(120, np.uint8), np.array(130, np.uint8)
    actual, used = run(lowered(proto), a, b, az, bz)
    np.testing.assert_array_equal(actual, (a.astype(int) - 120) @ (b.astype(int) - 130))
    assert used == {"avx2-int8"}


def test_unsigned_weights_of_a_quantised_graph_are_shifted() -> None:
    """The island before and after, for a target of signed bytes."""
    x = relax.Var("x", relax.TensorType((2, 4), "int8"))
    weights = np.array([[0, 200], [255, 128], [128, 130], [140, 120]], np.uint8)
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            scale, zero = relax.const(np.float32(0.5)), relax.const(np.int32(3))
            data = builder.emit(relax.op.dequantize(x, scale, zero))
            kernel = builder.emit(
                relax.op.dequantize(
                    relax.const(weights), relax.const(np.float32(0.25)), relax.const(np.int32(128))
                )
            )
            y = builder.emit_output(relax.op.matmul(data, kernel))
        builder.emit_func_output(y)
    after = LowerIntegers(ARM)(builder.get())

    signed = (weights.astype(int) - 128).astype(np.int8)
    expected = relax.BlockBuilder()
    with expected.function("main", [x]):
        with expected.dataflow():
            product = expected.emit(relax.op.matmul(x, relax.const(signed), out_dtype="int32"))
            sums = relax.const(3 * signed.sum(0, dtype=np.int32, keepdims=True))
            rest = expected.emit(relax.op.subtract(product, sums))
            real = expected.emit(relax.op.astype(rest, "float32"))
            factor = relax.const(np.full((1, 2), 0.125, np.float32))
            y = expected.emit_output(relax.op.multiply(real, factor))
        expected.emit_func_output(y)
    tvm.ir.assert_structural_equal(after["main"], expected.get()["main"], map_free_vars=True)
