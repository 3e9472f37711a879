"""Operators on quantised tensors, one by one, against ONNX Runtime or their definition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.compiler.frontends.small_models import run
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.evaluate.oracle import ONNX_RUNTIME, open_runner
from tinsmith.compiler.frontends.onnx.model import import_onnx

MICROSOFT = "com.microsoft"
_RANDOM = np.random.default_rng(7)

Arrays = Mapping[str, np.ndarray]


def codes(*shape: int, dtype: str = "uint8") -> np.ndarray:
    limits = np.iinfo(dtype)
    return _RANDOM.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


def f32(*values: float) -> np.ndarray:
    return np.array(values[0] if len(values) == 1 else values, np.float32)


def small_codes(*shape: int, dtype: str = "int8") -> np.ndarray:
    """Codes of which ONNX Runtime adds two products with bytes in 16 bits without saturating.

    That is how it computes on CPUs without VNNI where the codes are no constants.
    """
    return codes(*shape, dtype=dtype) // 2


def zero(value: int, dtype: str = "uint8") -> np.ndarray:
    return np.array(value, dtype)


def one(
    operator: str,
    inputs: Arrays,
    constants: Arrays,
    order: str,
    *,
    domain: str = "",
    version: int = 21,
    outputs: int = 1,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node; `order` lists its inputs, `-` for one that is left out."""
    names = ["" if name == "-" else name for name in order.split()]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(operator, names, results, "node", domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "small",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in results],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    imports = [helper.make_opsetid("", version), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def agrees_with_onnxruntime(proto: onnx.ModelProto, inputs: Arrays, apart: int = 0) -> None:
    """Codes differ by at most `apart`; floats by rounding."""
    pytest.importorskip("onnxruntime")
    reference = open_runner(ONNX_RUNTIME, proto.SerializeToString(), threads=1)
    for actual, expected in zip(
        run(import_onnx(proto), *inputs.values()), reference(inputs).values(), strict=True
    ):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        if actual.dtype.kind == "f":
            np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-5)
        else:
            assert np.abs(actual.astype(int) - expected).max(initial=0) <= apart


UNARY = [
    ("QLinearSigmoid", {}, (2, 3, 5), "x xs xz ys yz"),
    ("QLinearLeakyRelu", {"alpha": 0.2}, (2, 3, 5), "x xs xz ys yz"),
    ("QLinearLeakyRelu", {}, (7,), "x xs - ys -"),
    ("QLinearGlobalAveragePool", {"channels_last": 0}, (2, 3, 5, 7), "x xs xz ys yz"),
    ("QLinearGlobalAveragePool", {"channels_last": 1}, (2, 5, 7, 3), "x xs xz ys yz"),
    (
        "QLinearAveragePool",
        {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]},
        (1, 3, 7, 5),
        "x xs xz ys yz",
    ),
    (
        "QLinearAveragePool",
        {"kernel_shape": [2, 2], "channels_last": 1, "count_include_pad": 1},
        (1, 7, 5, 3),
        "x xs xz ys yz",
    ),
    ("QLinearSoftmax", {"axis": -1, "opset": 13}, (3, 9), "x xs xz ys yz"),
    ("QLinearSoftmax", {"axis": 1, "opset": 11}, (2, 3, 4), "x xs xz ys yz"),
]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize(("operator", "attributes", "shape", "order"), UNARY)
def test_operators_of_one_tensor(
    operator: str, attributes: dict, shape: tuple, order: str, dtype: str
) -> None:
    inputs = {"x": codes(*shape, dtype=dtype)}
    low = np.iinfo(dtype).min
    result = (
        (f32(1 / 256), zero(low, dtype))
        if operator in ("QLinearSigmoid", "QLinearSoftmax")
        else (f32(0.031), zero(low + 100, dtype))
    )
    constants = {"xs": f32(0.043), "xz": zero(low + 120, dtype), "ys": result[0], "yz": result[1]}
    used = {name: array for name, array in constants.items() if name in order.split()}
    proto = one(operator, inputs, used, order, domain=MICROSOFT, **attributes)
    # ONNX Runtime's sums and tables round in between.
    agrees_with_onnxruntime(proto, inputs, apart=1)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("operator", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize(("left", "right"), [((2, 3, 5), (2, 3, 5)), ((3, 1, 4), (2, 1))])
def test_operators_of_two_tensors(operator: str, left: tuple, right: tuple, dtype: str) -> None:
    inputs = {"a": codes(*left, dtype=dtype), "b": codes(*right, dtype=dtype)}
    low = np.iinfo(dtype).min
    constants = {"as": f32(0.02), "bs": f32(0.03), "ys": f32(0.05)}
    constants |= {"az": zero(low + 120, dtype), "bz": zero(low + 9, dtype)}
    constants |= {"yz": zero(low + 60, dtype)}
    order = "a as az b bs bz ys yz"
    proto = one(operator, inputs, constants, order, domain=MICROSOFT)
    agrees_with_onnxruntime(proto, inputs, apart=1)


def test_concatenation_of_different_scales() -> None:
    inputs = {"a": codes(2, 3, 4), "b": codes(2, 1, 4)}
    constants = {"ys": f32(0.04), "yz": zero(128), "as": f32(0.02), "az": zero(100)}
    constants |= {"bs": f32(0.04), "bz": zero(128)}
    order = "ys yz a as az b bs bz"
    proto = one("QLinearConcat", inputs, constants, order, domain=MICROSOFT, axis=1)
    agrees_with_onnxruntime(proto, inputs)


def test_choice_between_different_scales() -> None:
    inputs = {"c": _RANDOM.random((3, 4)) < 0.5, "a": codes(3, 4), "b": codes(3, 4)}
    constants = {"as": f32(0.02), "az": zero(100), "bs": f32(0.04), "bz": zero(128)}
    constants |= {"ys": f32(0.04), "yz": zero(128)}
    order = "c a as az b bs bz ys yz"
    proto = one("QLinearWhere", inputs, constants, order, domain=MICROSOFT)
    agrees_with_onnxruntime(proto, inputs)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_mean_over_axes(keepdims: int) -> None:
    inputs = {"x": codes(2, 3, 5)}
    constants = {"xs": f32(0.02), "xz": zero(100), "ys": f32(0.01), "yz": zero(90)}
    attributes = {"axes": [1, -1], "keepdims": keepdims}
    order = "x xs xz ys yz"
    proto = one("QLinearReduceMean", inputs, constants, order, domain=MICROSOFT, **attributes)
    mean = ((inputs["x"] - 100.0) * 0.02).mean((1, 2), keepdims=bool(keepdims))
    expected = np.clip(np.rint(mean / 0.01) + 90, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(run(import_onnx(proto), inputs["x"])[0], expected)


@pytest.mark.parametrize(
    ("data", "weight"), [("uint8", "int8"), ("int8", "int8"), ("uint8", "uint8")]
)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    ("shape", "kernel", "attributes"),
    [
        ((1, 3, 7, 5), (4, 3, 3, 2), {"pads": [1, 0, 1, 1], "strides": [2, 1]}),
        ((2, 4, 6, 6), (4, 1, 3, 3), {"group": 4, "auto_pad": "SAME_UPPER"}),
        ((1, 3, 11), (2, 3, 3), {"dilations": [2]}),
    ],
)
def test_convolution(
    shape: tuple, kernel: tuple, attributes: dict, data: str, weight: str, per_channel: bool
) -> None:
    inputs = {"x": codes(*shape, dtype=data)}
    channels = kernel[0]
    scales = _RANDOM.uniform(0.01, 0.02, channels).astype(np.float32)
    offset = 128 if weight == "uint8" else 0
    constants = {"xs": f32(0.05), "xz": zero(np.iinfo(data).min + 100, data)}
    constants |= {
        "w": codes(*kernel, dtype=weight),
        "b": codes(channels, dtype="int16").astype("int32"),
    }
    constants |= {"ws": scales if per_channel else scales[:1].reshape(())}
    constants |= {"wz": np.full(channels, offset, weight) if per_channel else zero(offset, weight)}
    constants |= {"ys": f32(0.4), "yz": zero(np.iinfo(data).min + 128, data)}
    order = "x xs xz w ws wz ys yz b"
    proto = one("QLinearConv", inputs, constants, order, **attributes)
    agrees_with_onnxruntime(proto, inputs, apart=1)


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize(
    ("left", "right"), [((3, 5), (5, 4)), ((2, 3, 5), (5, 4)), ((2, 3, 5), (2, 5, 1))]
)
def test_matrix_product(left: tuple, right: tuple, per_column: bool) -> None:
    inputs = {"a": codes(*left)}
    columns = right[-1] if per_column and len(right) == 2 else 1
    constants = {"as": f32(0.02), "az": zero(120), "b": small_codes(*right)}
    constants |= {"bs": _RANDOM.uniform(0.01, 0.02, columns).astype(np.float32)}
    constants |= {"bz": np.zeros(columns, np.int8), "ys": f32(0.06), "yz": zero(128)}
    proto = one("QLinearMatMul", inputs, constants, "a as az b bs bz ys yz")
    agrees_with_onnxruntime(proto, inputs, apart=1)


@pytest.mark.parametrize(
    ("attributes", "quantised"),
    [({}, False), ({"transB": 1}, True), ({"transA": 1, "alpha": 0.5}, True)],
)
def test_gemm(attributes: dict, quantised: bool) -> None:
    inputs = {"a": codes(*((5, 3) if attributes.get("transA") else (3, 5)))}
    weight = codes(*((4, 5) if attributes.get("transB") else (5, 4)), dtype="int8")
    constants = {"as": f32(0.02), "az": zero(120), "b": weight, "bs": f32(0.01)}
    constants |= {"bz": zero(0, "int8"), "c": codes(4, dtype="int16").astype("int32")}
    order = "a as az b bs bz c"
    if quantised:
        constants |= {"ys": f32(0.06), "yz": zero(128)}
        order += " ys yz"
    proto = one("QGemm", inputs, constants, order, domain=MICROSOFT, **attributes)
    agrees_with_onnxruntime(proto, inputs, apart=1)


@pytest.mark.parametrize(
    ("left", "right"), [("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")]
)
@pytest.mark.parametrize("offsets", ["none", "numbers", "columns"])
def test_integer_matrix_product(left: str, right: str, offsets: str) -> None:
    weights = codes(5, 4, dtype=right) if left == right else small_codes(5, 4, dtype=right)
    inputs = {"a": codes(2, 3, 5, dtype=left), "b": weights}
    constants: dict[str, np.ndarray] = {}
    if offsets != "none":
        constants["az"] = zero(3, left)
        constants["bz"] = zero(7, right) if offsets == "numbers" else codes(4, dtype=right)
    order = "a b az bz" if constants else "a b"
    proto = one("MatMulInteger", inputs, constants, order)
    agrees_with_onnxruntime(proto, inputs)


@pytest.mark.parametrize("weight", ["uint8", "int8"])
def test_integer_convolution(weight: str) -> None:
    inputs = {"x": codes(1, 3, 6, 5)}
    constants = {"w": codes(4, 3, 3, 3, dtype=weight), "xz": zero(77), "wz": zero(5, weight)}
    attributes = {"pads": [1, 0, 2, 1]}
    proto = one("ConvInteger", inputs, constants, "x w xz wz", **attributes)
    wide = np.pad(inputs["x"].astype(int) - 77, ((0, 0), (0, 0), (1, 2), (0, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), (2, 3))
    expected = np.einsum("nchwij,ocij->nohw", windows, constants["w"].astype(int) - 5)
    (actual,) = run(import_onnx(proto), inputs["x"])
    assert actual.dtype == np.int32
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("low", [-3.0, 0.5, -9.0])
def test_dynamic_quantization(low: float) -> None:
    inputs = {"x": _RANDOM.uniform(low, low + 4, (3, 7)).astype(np.float32)}
    agrees_with_onnxruntime(one("DynamicQuantizeLinear", inputs, {}, "x", outputs=3), inputs)


def test_dynamic_quantization_of_zeros_is_zero() -> None:
    inputs = {"x": np.zeros((3, 2), np.float32)}
    quantized, scale, offset = run(
        import_onnx(one("DynamicQuantizeLinear", inputs, {}, "x", outputs=3)), inputs["x"]
    )
    assert (quantized == 0).all() and offset == 0 and scale > 0


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("per_column", [False, True])
def test_products_of_microsoft_with_float_results(per_column: bool, bias: bool) -> None:
    columns = 4 if per_column else 1
    weights = {"b": codes(5, 4, dtype="int8"), "c": _RANDOM.random(4).astype(np.float32)}
    weights["bs"] = _RANDOM.uniform(0.01, 0.02, columns).astype(np.float32)
    weights["bz"] = codes(columns, dtype="int8") // np.int8(30)
    left = {"x": _RANDOM.standard_normal((2, 3, 5)).astype(np.float32)}
    order = "x b bs bz c" if bias else "x b bs bz"
    used = {name: weights[name] for name in order.split()[1:]}
    agrees_with_onnxruntime(one("DynamicQuantizeMatMul", left, used, order, domain=MICROSOFT), left)
    inputs = {"a": codes(3, 5)}
    order = "a b as bs az bz c" if bias else "a b as bs az bz"
    used |= {"as": f32(0.03), "az": zero(100)}
    proto = one("MatMulIntegerToFloat", inputs, used, order, domain=MICROSOFT)
    agrees_with_onnxruntime(proto, inputs)


def test_a_table_of_many_dtypes_and_axes() -> None:
    values = {"x": (_RANDOM.standard_normal((2, 3, 4)) * 9).astype(np.float32)}
    scales = _RANDOM.uniform(0.05, 0.1, 3).astype(np.float32)
    for dtype in ("uint8", "int8", "uint16", "int16"):
        constants = {"s": scales, "z": codes(3, dtype=dtype)}
        for axis in (1, -2):
            proto = one("QuantizeLinear", values, constants, "x s z", axis=axis)
            agrees_with_onnxruntime(proto, values)
            stored = {"x": codes(2, 3, 4, dtype=dtype)}
            proto = one("DequantizeLinear", stored, constants, "x s z", axis=axis)
            agrees_with_onnxruntime(proto, stored)


@pytest.mark.parametrize("domain", ["", MICROSOFT])
def test_scales_of_the_whole_tensor(domain: str) -> None:
    values = {"x": np.array([[-3.5, -0.25, 0.0], [0.25, 0.75, 99.0]], np.float32)}
    constants = {"s": f32(0.5), "z": zero(3)}
    agrees_with_onnxruntime(
        one("QuantizeLinear", values, constants, "x s z", domain=domain), values
    )
    stored = {"x": codes(4)}
    agrees_with_onnxruntime(
        one("DequantizeLinear", stored, constants, "x s z", domain=domain), stored
    )


@pytest.mark.parametrize(
    ("size", "narrow", "offset"), [(6, True, True), (7, False, True), (7, True, False)]
)
def test_blocks(size: int, narrow: bool, offset: bool) -> None:
    blocks = -(-size // 3)
    stored = (codes(size, 5, dtype="int8") >> (4 if narrow else 0)).astype(np.int8)
    scales = _RANDOM.uniform(0.05, 0.1, (blocks, 5)).astype(np.float32)
    offsets = (codes(blocks, 5, dtype="int8") >> 4).astype(np.int8)
    element = TensorProto.INT4 if narrow else TensorProto.INT8
    order = "w s z" if offset else "w s"
    proto = one("DequantizeLinear", {}, {"s": scales}, order, axis=0, block_size=3)
    for name, array in (("w", stored), ("z", offsets))[: 1 + offset]:
        proto.graph.initializer.append(
            helper.make_tensor(name, element, array.shape, array.ravel().tolist())
        )
    spread = [a.repeat(3, 0)[:size] for a in (scales, offsets if offset else 0 * offsets)]
    expected = (stored.astype(np.float32) - spread[1]) * spread[0]
    np.testing.assert_allclose(run(import_onnx(proto))[0], expected, rtol=1e-6)


HOSTILE = [
    ({"xs": f32(float("inf"))}, "must be finite, not inf"),
    ({"xs": f32(float("nan"))}, "must be finite, not nan"),
    ({"xs": f32(-float("inf"))}, "must be finite, not -inf"),
    ({"xs": f32(0.1, 0.2)}, "does not fit"),
    ({"ws": f32(0.1, 0.2, 0.3)}, "does not fit"),
    ({"ws": np.ones((2, 2), np.float32)}, "does not fit"),
    ({"wz": np.zeros(3, np.int8)}, r"the zero point has the shape \[3\]"),
    ({"xz": zero(3, "int8")}, "must have one dtype"),
    (
        {"b": np.arange(3, dtype=np.int32)},
        "the bias has 3 elements of int32, the result 4 channels",
    ),
]


@pytest.mark.parametrize(("changed", "message"), HOSTILE)
def test_parameters_that_do_not_fit_are_refused(changed: dict, message: str) -> None:
    inputs = {"x": codes(1, 3, 5, 5)}
    constants = {"xs": f32(0.1), "xz": zero(3), "w": codes(4, 3, 3, 3, dtype="int8")}
    constants |= {"ws": f32(0.1), "wz": zero(0, "int8"), "ys": f32(0.1), "yz": zero(0)}
    constants |= {"b": np.zeros(4, np.int32), **changed}
    order = "x xs xz w ws wz ys yz b"
    with pytest.raises(ModelError, match=message) as caught:
        import_onnx(one("QLinearConv", inputs, constants, order))
    assert "(QLinearConv)" in str(caught.value) and "\n" not in str(caught.value)


def test_blocks_that_do_not_fit_are_refused() -> None:
    inputs = {"x": codes(6, 5, dtype="int8")}
    constants = {"s": np.ones((3, 5), np.float32)}
    with pytest.raises(ModelError, match=r"need a scale of \[2, 5\], not \[3, 5\]"):
        import_onnx(one("DequantizeLinear", inputs, constants, "x s", axis=0, block_size=3))


def test_products_of_wide_integers_are_refused() -> None:
    inputs = {"a": codes(3, 5, dtype="int16"), "b": codes(5, 4, dtype="int16")}
    with pytest.raises(ModelError, match="int16, not of 8-bit integers"):
        import_onnx(one("MatMulInteger", inputs, {}, "a b"))
