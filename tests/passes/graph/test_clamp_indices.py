"""Indices are brought back into their tensors, and left alone where they cannot leave them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import tvm
from graph_checks import assert_becomes, assert_left_alone, execute
from tvm import relax
from tvm.script import ir as I  # noqa: N812
from tvm.script import relax as R  # noqa: N812

from tinsmith.passes.graph import ClampIndices
from tinsmith.passes.graph.index_bounds import integer_range

X = np.random.default_rng(0).standard_normal((5, 4, 6)).astype(np.float32)


def _graph(
    build: Callable[..., Sequence[relax.Expr]], *inputs: tuple[tuple[int, ...], str]
) -> tvm.IRModule:
    """A module whose `main` returns the expressions that `build(emit, *parameters)` answers."""
    builder = relax.BlockBuilder()
    parameters = [
        relax.Var(f"x{i}", relax.TensorType(shape, dtype))
        for i, (shape, dtype) in enumerate(inputs)
    ]
    with builder.function("main", parameters):
        with builder.dataflow():
            results = [builder.emit(result) for result in build(builder.emit, *parameters)]
            output = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(output)
    return builder.get()


def test_indices_of_unknown_range_are_clamped() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((10, 4), "float32"), i: R.Tensor((3,), "int64")) -> R.Tensor(
            (3, 4), "float32"
        ):
            with R.dataflow():
                y = R.take(x, i, axis=0, mode="fast")
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((10, 4), "float32"), i: R.Tensor((3,), "int64")) -> R.Tensor(
            (3, 4), "float32"
        ):
            with R.dataflow():
                a = R.add(i, R.const(10, "int64"))
                b = R.less(i, R.const(0, "int64"))
                c = R.where(b, a, i)
                d = R.maximum(c, R.const(0, "int64"))
                e = R.minimum(d, R.const(9, "int64"))
                y = R.take(x, e, axis=0, mode="clip")
                R.output(y)
            return y

    assert_becomes(ClampIndices(), Before, After)


def test_indices_that_cannot_leave_are_left_alone() -> None:
    def build(emit: Callable, x: relax.Expr, i: relax.Expr) -> list[relax.Expr]:
        best = emit(relax.op.reshape(emit(relax.op.argmax(x, axis=1)), (300, 1)))
        wide = emit(relax.op.astype(i, "int64"))
        first = relax.const(np.array([0, 299]), "int64")
        return [
            relax.op.gather_elements(x, best, axis=1),
            relax.op.take(x, wide, axis=0, mode="clip"),
            relax.op.take(x, wide, axis=1, mode="wrap"),
            relax.op.take(x, first, axis=0, mode="clip"),
            relax.op.gather_nd(x, emit(relax.op.expand_dims(wide, 1))),
        ]

    assert_left_alone(ClampIndices(), _graph(build, ((300, 10), "float32"), ((3,), "uint8")))


def _inside(indices: np.ndarray, extent: int) -> np.ndarray:
    """What the indices should be: Python's numbers, for there are those of 64 bits unsigned."""
    plain = [int(i) + extent if i < 0 else int(i) for i in indices.reshape(-1).tolist()]
    return np.array([min(max(i, 0), extent - 1) for i in plain]).reshape(indices.shape)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "uint32", "int64", "uint64"])
def test_every_operator_stays_inside_with_indices_of(dtype: str) -> None:
    limits = np.iinfo(dtype)
    last = limits.max if limits.min == 0 else -1
    i = np.array([0, 3, limits.min, limits.max, 7, last], dtype)
    along = np.tile(i.reshape(1, 6, 1), (5, 1, 6))
    places = i.reshape(3, 2)
    signed, common = limits.min < 0, dtype in ("int32", "int64")

    def build(emit: Callable, x: relax.Expr, *given: relax.Expr) -> list[relax.Expr]:
        i, along, places, updates = given
        results = [relax.op.take(x, i, axis=0, mode="fast")]
        if signed:
            results.append(relax.op.index_tensor(x, [i, i]))
        if common:
            wide = emit(relax.op.astype(places, "int64"))
            results += [
                relax.op.gather_elements(x, along, axis=1),
                relax.op.gather_nd(x, wide),
                relax.op.scatter_nd(x, wide, updates, "add"),
            ]
        return results

    updates = X[:3, 0]
    given = [(X.shape, "float32"), (i.shape, dtype), (along.shape, dtype), (places.shape, dtype)]
    module = ClampIndices()(_graph(build, *given, (updates.shape, "float32")))
    results = execute(module, [X, i, along, places, updates])
    rows, columns = _inside(i, 5), _inside(i, 4)
    np.testing.assert_array_equal(results[0], X[rows])
    if signed:
        np.testing.assert_array_equal(results[1], X[rows, columns])
    if common:
        np.testing.assert_array_equal(results[2], np.take_along_axis(X, _inside(along, 4), 1))
        at = (_inside(places[:, 0], 5), _inside(places[:, 1], 4))
        np.testing.assert_array_equal(results[3], X[at])
        added = X.copy()
        np.add.at(added, at, updates)
        np.testing.assert_allclose(results[4], added, rtol=1e-6)


def test_the_last_step_of_a_sequence() -> None:
    """What importers make of `y[:, -1]`: it read in front of the tensor."""
    module = _graph(
        lambda emit, x: [
            relax.op.take(x, relax.const(np.array(-1), "int64"), axis=1, mode="fast"),
            relax.op.take(x, relax.const(np.array([9, -9]), "int32"), axis=1, mode="fast"),
        ],
        (X.shape, "float32"),
    )
    results = execute(ClampIndices()(module), [X])
    np.testing.assert_array_equal(results[0], X[:, -1])
    np.testing.assert_array_equal(results[1], X[:, [3, 0]])


def test_nothing_is_read_from_an_empty_tensor() -> None:
    module = _graph(
        lambda emit, x, i: [relax.op.take(x, i, axis=0, mode="clip")],
        ((0, 4), "float32"),
        ((3,), "int32"),
    )
    result = ClampIndices()(module)["main"].body.blocks[0].bindings[0].value
    np.testing.assert_array_equal(result.fields[0].value.numpy(), np.zeros((3, 4)))


def test_ranges() -> None:
    def build(emit: Callable, x: relax.Expr) -> list[relax.Expr]:
        best = emit(relax.op.argmax(x, axis=1))
        shifted = emit(relax.op.add(best, relax.const(3, "int64")))
        byte = emit(relax.op.astype(best, "uint8"))
        return [
            shifted,
            relax.op.minimum(shifted, relax.const(5, "int64")),
            relax.op.concat([shifted, best], axis=0),
            relax.op.astype(x, "int64"),
            relax.op.add(byte, relax.const(250, "uint8")),
            relax.op.clip(relax.op.astype(x, "int32"), 2, 8),
        ]

    bindings = list(_graph(build, ((3, 7), "float32"))["main"].body.blocks[0].bindings)
    definitions = {binding.var: binding.value for binding in bindings}
    found = [integer_range(field, definitions.get) for field in bindings[-1].value.fields]
    whole = np.iinfo(np.int64)
    expected = [(3, 9), (3, 5), (0, 9), (whole.min, whole.max), (0, 255), (2, 8)]
    assert found == expected
