"""Elementwise kernels, copies and gathers: numbers, and the form of the loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from kernel_checks import SPEC, check, floats, fused, kernels, number, text
from scipy import special
from tvm import relax, tirx
from tvm.relax import op

from tinsmith.targets.schedule import schedule_module

SHAPES = [(1, 1), (7,), (1, 13, 17), (3, 1, 5, 8), (2, 31, 33), (1, 56, 56, 32)]


@pytest.mark.parametrize("shape", SHAPES)
def test_elementwise_chain(shape: tuple[int, ...]) -> None:
    check(
        lambda e, x, y: op.nn.relu(e(op.add(e(op.multiply(x, number(2))), y))),
        lambda x, y: np.maximum(2 * x + y, 0),
        [floats(*shape), floats(*shape, seed=1)],
        "injective",
    )


@pytest.mark.parametrize(
    ("shape", "other"),
    [((1, 9, 11, 33), (33,)), ((4, 5, 6), (5, 1)), ((3, 17), (3, 1)), ((5, 1, 7), (1, 6, 1))],
)
def test_broadcasts(shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    check(add, np.add, [floats(*shape), floats(*other, seed=1)], "injective")


def add(_emit: Any, x: relax.Expr, y: relax.Expr) -> relax.Expr:
    return op.add(x, y)


def test_gelu_is_one_vectorised_pass() -> None:
    module, _ = check(
        lambda e, x: op.nn.gelu(x),
        lambda x: 0.5 * x * (1 + special.erf(x / np.sqrt(2, dtype=np.float64))),
        [floats(1, 128, 1536)],
        "injective",
    )
    script = text(module)
    assert "T.erf" not in script and "vectorized" in script and "parallel" in script


def test_dependent_activations_stay_small() -> None:
    """x tanh(log(1 + e^x)) three times over: inlining must not multiply the expression."""

    def emit(e: Any, x: relax.Expr) -> relax.Expr:
        for _ in range(3):
            softplus = e(op.log(e(op.add(number(1), e(op.exp(x))))))
            x = e(op.multiply(x, e(op.tanh(softplus))))
        return x

    def reference(x: Any) -> Any:
        x = x.astype(np.float64)
        for _ in range(3):
            x = x * np.tanh(np.log1p(np.exp(x)))
        return x

    module, _ = check(emit, reference, [floats(5, 19)], "injective")
    assert len(text(module)) < 60_000


TRANSPOSES = [
    ((33, 65), (1, 0)),
    ((1, 3, 21, 17), (0, 2, 3, 1)),
    ((1, 21, 17, 3), (0, 3, 1, 2)),
    ((1, 40, 9, 9), (0, 2, 3, 1)),
    ((2, 19, 4, 32), (0, 2, 1, 3)),
    ((1, 19, 4, 32), (0, 2, 3, 1)),
    ((1, 9, 11, 2, 2), (0, 1, 3, 2, 4)),
    ((5, 1, 7), (2, 1, 0)),
    ((2, 3, 4, 5), (3, 2, 1, 0)),
    ((200, 200), (1, 0)),
]


@pytest.mark.parametrize(("shape", "axes"), TRANSPOSES)
def test_transposes(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    check(
        lambda e, x: op.permute_dims(x, axes),
        lambda x: np.transpose(x, axes),
        [floats(*shape)],
        "injective",
    )


def test_transpose_runs_in_registers() -> None:
    module, _ = schedule_module(
        fused(lambda e, x: op.permute_dims(x, (1, 0)), [floats(64, 64)]), SPEC
    )
    assert "T.Shuffle" in text(module)


@pytest.mark.parametrize("axes", [(1, 0), (0, 1)])
def test_transpose_with_arithmetic(axes: tuple[int, int]) -> None:
    check(
        lambda e, x, y: op.sigmoid(e(op.add(e(op.permute_dims(x, axes)), y))),
        lambda x, y: special.expit(np.transpose(x, axes) + y),
        [floats(37, 37), floats(37, 37, seed=1)],
        "injective",
    )


@pytest.mark.parametrize("shape", [(1, 16, 24, 32), (1, 9, 11, 8), (1, 3, 5, 7)])
def test_transposed_tensor_read_more_than_once(shape: tuple[int, ...]) -> None:
    """One tile for each tensor, however often it is read; others lie beside it."""

    def emit(e: Any, x: relax.Expr, y: relax.Expr) -> relax.Expr:
        t = e(op.permute_dims(x, (0, 2, 3, 1)))
        u = e(op.permute_dims(y, (0, 2, 3, 1)))
        gated = e(op.multiply(e(op.multiply(t, e(op.sigmoid(t)))), u))
        return op.add(e(op.multiply(u, t)), gated)

    def reference(x: Any, y: Any) -> Any:
        t, u = (a.astype(np.float64).transpose(0, 2, 3, 1) for a in (x, y))
        return u * t + t * special.expit(t) * u

    check(emit, reference, [floats(*shape), floats(*shape, seed=1)], "injective")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "float16", "float64", "bool"])
def test_dtypes(dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 2, (23, 35)).astype(dtype)
    check(lambda e, x: op.permute_dims(x, (1, 0)), np.transpose, [values], "injective")


def test_casts() -> None:
    check(
        lambda e, x: op.astype(e(op.multiply(x, number(50))), "int64"),
        lambda x: (x * np.float32(50)).astype(np.int64),
        [floats(3, 37)],
        "injective",
    )


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_concatenation(axis: int) -> None:
    shapes = [[2, 5, 7, 9] for _ in range(3)]
    for extent, shape in zip((1, 4, 8), shapes, strict=True):
        shape[axis] = extent
    module, _ = check(
        lambda e, x, y, z: op.concat([e(op.nn.relu(x)), y, z], axis),
        lambda x, y, z: np.concatenate([np.maximum(x, 0), y, z], axis),
        [floats(*shape, seed=i) for i, shape in enumerate(shapes)],
        "injective",
    )
    assert "if_then_else" not in text(module)


def test_concatenation_of_many() -> None:
    check(
        lambda e, *xs: op.concat(list(xs), 3),
        lambda *xs: np.concatenate(xs, 3),
        [floats(1, 7, 7, 8 + i, seed=i) for i in range(20)],
        "injective",
    )


@pytest.mark.parametrize("pad", [(1, 1), (0, 3), (2, 0)])
def test_padding(pad: tuple[int, int]) -> None:
    low, high = pad
    for layout in ([0, 0, 0, 0, low, high, low, high], [0, 0, low, high, low, high, 0, 0]):
        pairs = [(layout[i], layout[i + 1]) for i in range(0, 8, 2)]
        module, _ = check(
            lambda e, x, p=layout: op.nn.pad(x, p, pad_value=1.5),
            lambda x, p=pairs: np.pad(x, p, constant_values=1.5),
            [floats(1, 5, 9, 11)],
            "injective",
        )
        assert "if_then_else" not in text(module)


def test_slices_with_steps_and_reversal() -> None:
    check(
        lambda e, x: op.strided_slice(x, [1, 2], [1, 0], [17, 5], [2, 3]),
        lambda x: x[:, 1:17:2, 0:5:3],
        [floats(3, 19, 5)],
        "injective",
    )
    check(lambda e, x: op.flip(x, 1), lambda x: x[:, ::-1], [floats(3, 17, 5)], "injective")


def test_split_has_two_outputs() -> None:
    check(
        lambda e, x: op.split(x, [3], 1),
        lambda x: [x[:, :3], x[:, 3:]],
        [floats(2, 8, 5)],
        "injective",
    )


def test_reshape_between_transposes_has_no_divisions() -> None:
    """A channel shuffle: its divisions become loop variables."""

    def emit(e: Any, x: relax.Expr) -> relax.Expr:
        pairs = e(op.reshape(x, (1, 9, 9, 2, 12)))
        return op.reshape(e(op.permute_dims(pairs, (0, 1, 2, 4, 3))), (1, 9, 9, 24))

    def reference(x: Any) -> Any:
        return x.reshape(1, 9, 9, 2, 12).transpose(0, 1, 2, 4, 3).reshape(1, 9, 9, 24)

    module, _ = check(emit, reference, [floats(1, 9, 9, 24)], "injective")
    assert "//" not in text(module) and "%" not in text(module).replace("%%", "")


def test_attention_heads() -> None:
    check(
        lambda e, x: op.permute_dims(e(op.reshape(x, (1, 19, 4, 8))), (0, 2, 3, 1)),
        lambda x: x.reshape(1, 19, 4, 8).transpose(0, 2, 3, 1),
        [floats(1, 19, 32)],
        "injective",
    )


def test_gathers() -> None:
    table, indices = floats(100, 33), np.array([[5, 99, 0], [7, 7, 1]], np.int64)
    check(lambda e, x, i: op.take(x, i, axis=0), lambda x, i: x[i], [table, indices], "injective")
    rows = np.random.default_rng(0).integers(0, 33, (100, 9))
    check(
        lambda e, x, i: op.gather_elements(x, i, axis=1),
        lambda x, i: np.take_along_axis(x, i, 1),
        [table, rows],
        "injective",
    )


def test_one_hot_and_where() -> None:
    on, off = (relax.prim_value(tirx.FloatImm("float32", v)) for v in (1.0, 0.0))
    check(
        lambda e, i: op.one_hot(i, on, off, 7, -1),
        lambda i: np.eye(7, dtype=np.float32)[i],
        [np.array([0, 6, 3], np.int64)],
        "injective",
    )
    check(
        lambda e, x, y: op.where(e(op.greater(x, y)), x, y),
        np.maximum,
        [floats(1, 17, 13), floats(17, 1, seed=1)],
        "injective",
    )


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("method", ["nearest_neighbor", "linear", "cubic"])
def test_resize_agrees_with_the_unscheduled_kernel(layout: str, method: str) -> None:
    shape = (1, 9, 7, 12) if layout == "NHWC" else (1, 12, 9, 7)

    def emit(_e: Any, x: relax.Expr) -> relax.Expr:
        return op.image.resize2d(x, (18, 21), layout=layout, method=method)

    def naive(x: Any) -> Any:
        function = kernels(fused(emit, [x]))[0].with_attr("global_symbol", "main")
        shape = [int(e) for e in function.params[-1].ty.shape]
        result = tvm.runtime.tensor(np.zeros(shape, np.float32))
        tvm.compile(function, target="llvm")["main"](tvm.runtime.tensor(x), result)
        return result.numpy()

    check(emit, naive, [floats(*shape)], "injective", tolerance=1e-5)


def test_small_work_stays_on_one_core() -> None:
    module, _ = schedule_module(fused(relu, [floats(1, 8, 8, 32)]), SPEC)
    assert "parallel" not in text(module)
    module, _ = schedule_module(fused(relu, [floats(1, 128, 128, 64)]), SPEC)
    assert "parallel" in text(module)


def relu(_emit: Any, x: relax.Expr) -> relax.Expr:
    return op.nn.relu(x)


def test_indices_are_32_bits_wide() -> None:
    module, _ = schedule_module(fused(relu, [floats(3, 5, 1001)]), SPEC)
    body = text(module).split("T.func_attr", 1)[1]
    assert "int64" not in body


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize(
    ("shape", "channels"),
    [((1, 3, 5, 16), 4), ((2, 3, 7, 37), 4), ((1, 1, 3, 20), 4), ((1, 4, 6, 19), 4)],
)
def test_bytes_of_few_channels_are_written_as_words(
    shape: tuple[int, ...], channels: int, dtype: str
) -> None:
    """An image of floats as bytes, channels last, padded to whole words."""
    missing = channels - shape[1]

    def emit(e: Any, x: relax.Expr) -> relax.Expr:
        codes = e(op.astype(e(op.multiply(x, number(20))), dtype))
        if missing:
            codes = e(op.nn.pad(codes, [0, 0, 0, missing, 0, 0, 0, 0]))
        return op.permute_dims(codes, [0, 2, 3, 1])

    def reference(x: np.ndarray) -> np.ndarray:
        codes = (x * np.float32(20)).astype(dtype)
        return np.pad(codes, ((0, 0), (0, missing), (0, 0), (0, 0))).transpose(0, 2, 3, 1)

    values = np.abs(floats(*shape)) if dtype == "uint8" else floats(*shape)
    module, _ = check(emit, reference, [values], "injective")
    assert "words" in text(module)
