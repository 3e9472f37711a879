"""Constant folding, and the numpy operators behind it against TVM's own."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from graph_checks import assert_becomes, assert_left_alone, execute, operators, with_weights
from tvm import relax
from tvm.script import ir as I  # noqa: N812
from tvm.script import relax as R  # noqa: N812

from tinsmith.passes.graph import FoldConstants
from tinsmith.passes.graph.tensors import constant


def test_folds_shape_changes_and_arithmetic_of_weights() -> None:
    w = np.arange(32, dtype="float32").reshape(8, 4)
    b = np.arange(4, dtype="float32")

    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((2, 8), "float32"),
            w: R.Tensor((4, 8), "float32"),
            b: R.Tensor((4,), "float32"),
        ) -> R.Tensor((2, 4), "float32"):
            with R.dataflow():
                wt = R.permute_dims(w, axes=[1, 0])
                y = R.matmul(x, wt)
                b2 = R.reshape(b, R.shape([1, 4]))
                b3 = R.multiply(b2, R.const(2.0, "float32"))
                z = R.add(y, b3)
                R.output(z)
            return z

    @I.ir_module
    class After:
        @R.function
        def main(
            x: R.Tensor((2, 8), "float32"),
            w: R.Tensor((8, 4), "float32"),
            b: R.Tensor((1, 4), "float32"),
        ) -> R.Tensor((2, 4), "float32"):
            with R.dataflow():
                y = R.matmul(x, w)
                z = R.add(y, b)
                R.output(z)
            return z

    assert_becomes(
        FoldConstants(),
        with_weights(Before, w=np.ascontiguousarray(w.T), b=b),
        with_weights(After, w=w, b=2 * b.reshape(1, 4)),
    )


def test_folds_shapes() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 8), "float32")) -> R.Tensor((2,), "int64"):
            with R.dataflow():
                s = R.shape_of(x)
                t = R.shape_to_tensor(s)
                u = R.multiply(t, R.const(2, "int64"))
                R.output(u)
            return u

    folded = FoldConstants()(Before)
    assert operators(folded) == []
    np.testing.assert_array_equal(execute(folded, [np.zeros((2, 8), "float32")])[0], [4, 16])


def test_leaves_alone_what_would_only_grow() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((512, 512), "float32")) -> R.Tensor((512, 512), "float32"):
            with R.dataflow():
                a = R.add(x, R.const(1.0, "float32"))
                R.output(a)
            return a

    assert_left_alone(FoldConstants(), Module)


_DATA = np.linspace(-2.5, 2.5, 24, dtype="float32").reshape(2, 3, 4)
_OTHER = np.linspace(0.5, 3.0, 24, dtype="float32").reshape(2, 3, 4)

_CASES = {
    "reshape": lambda x, y: relax.op.reshape(x, (4, 6)),
    "squeeze": lambda x, y: relax.op.squeeze(relax.op.expand_dims(x, 1)),
    "permute_dims": lambda x, y: relax.op.permute_dims(x, [2, 0, 1]),
    "permute_reversed": lambda x, y: relax.op.permute_dims(x),
    "concat": lambda x, y: relax.op.concat([x, y], 1),
    "take": lambda x, y: relax.op.take(x, relax.const(np.array([2, 0]), "int64"), axis=2),
    "strided_slice": lambda x, y: relax.op.strided_slice(x, [1, 2], [1, 0], [3, 4], [1, 2]),
    "subtract": relax.op.subtract,
    "divide": relax.op.divide,
    "power": lambda x, y: relax.op.power(y, x),
    "maximum": relax.op.maximum,
    "where": lambda x, y: relax.op.where(relax.op.less(x, y), x, y),
    "clip": lambda x, y: relax.op.clip(x, -1.0, 1.5),
    "astype": lambda x, y: relax.op.astype(x, "int32"),
    "matmul": lambda x, y: relax.op.matmul(x, relax.op.permute_dims(y, [0, 2, 1])),
    "mean": lambda x, y: relax.op.mean(x, [0, 2], keepdims=True),
    "sum": lambda x, y: relax.op.sum(x, [1]),
    "max": lambda x, y: relax.op.max(x, None),
    "rsqrt": lambda x, y: relax.op.rsqrt(y),
    "tanh": lambda x, y: relax.op.tanh(x),
    "floor": lambda x, y: relax.op.floor(x),
    "full": lambda x, y: relax.op.full((2, 5), relax.const(3.0, "float32"), "float32"),
    "broadcast_to": lambda x, y: relax.op.broadcast_to(x, (5, 2, 3, 4)),
}


@pytest.mark.parametrize("name", sorted(_CASES))
def test_numpy_computes_what_tvm_computes(name: str) -> None:
    def module(constants: bool) -> tvm.IRModule:
        builder = relax.BlockBuilder()
        parameters = [relax.Var(n, relax.TensorType((2, 3, 4), "float32")) for n in "xy"]
        operands = [constant(_DATA), constant(_OTHER)] if constants else parameters
        with builder.function("main", parameters):
            with builder.dataflow():
                result = builder.emit_output(builder.emit(_CASES[name](*operands)))
            builder.emit_func_output(result)
        return relax.transform.DecomposeOpsForInference()(builder.get())

    folded = FoldConstants()(module(constants=True))
    assert operators(folded) == []
    expected = execute(module(constants=False), [_DATA, _OTHER])[0]
    actual = execute(folded, [_DATA, _OTHER])[0]
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def test_operators_without_a_numpy_form_are_compiled() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((), "float32")) -> R.Tensor((3,), "float32"):
            with R.dataflow():
                a = R.erf(R.const(0.5, "float32"))
                b = R.broadcast_to(a, R.shape([3]))
                c = R.sin(b)
                d = R.add(c, x)
                R.output(d)
            return d

    folded = FoldConstants()(Module)
    assert operators(folded) == ["add"]
    expected = np.full(3, np.sin(0.5204999) + 1)
    actual = execute(folded, [np.ones((), "float32")])[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_a_call_that_tvm_cannot_fold_stays() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((4,), "int32")) -> R.Tensor((4,), "int32"):
            with R.dataflow():
                a = R.power(x, R.const(2, "int32"))
                R.output(a)
            return a

    assert_left_alone(FoldConstants(), Module)
