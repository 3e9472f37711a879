"""Reshapes moved out of the way of fusion; equal constants combined."""

from __future__ import annotations

import numpy as np
import pytest
from graph_checks import (
    assert_becomes,
    assert_computes_the_same,
    assert_left_alone,
    operators,
    with_weights,
)
from tvm import relax
from tvm.script import ir as I  # noqa: N812
from tvm.script import relax as R  # noqa: N812

from tinsmith.passes.graph import CombineConstants, SinkReshapes

_RANDOM = np.random.default_rng(0)


def _array(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype("float32")


def test_matrices_stay_matrices() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((6, 8), "float32"),
            b: R.Tensor((8,), "float32"),
            w: R.Tensor((8, 4), "float32"),
        ) -> R.Tensor((1, 6, 4), "float32"):
            with R.dataflow():
                a = R.reshape(x, R.shape([1, 6, 8]))
                c = R.add(a, b)
                d = R.nn.gelu(c)
                e = R.nn.layer_norm(d, b, b, axes=[-1])
                y = R.matmul(e, w)
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(
            x: R.Tensor((6, 8), "float32"),
            b: R.Tensor((8,), "float32"),
            w: R.Tensor((8, 4), "float32"),
        ) -> R.Tensor((1, 6, 4), "float32"):
            with R.dataflow():
                c = R.add(x, b)
                d = R.nn.gelu(c)
                e = R.nn.layer_norm(d, b, b, axes=[-1])
                f = R.matmul(e, w)
                y = R.reshape(f, R.shape([1, 6, 4]))
                R.output(y)
            return y

    b, w = _array(8), _array(8, 4)
    assert_becomes(SinkReshapes(), with_weights(Before, b=b, w=w), with_weights(After, b=b, w=w))


_AFTER_RESHAPE = {
    "scalar": lambda a, y: relax.op.multiply(a, relax.const(2.0)),
    "row": lambda a, y: relax.op.add(relax.const(_array(4)), a),
    "head": lambda a, y: relax.op.add(a, relax.const(_array(3, 1, 1))),
    "full": lambda a, y: relax.op.subtract(a, relax.op.reshape(y, (1, 3, 2, 4))),
    "larger": lambda a, y: relax.op.add(a, relax.const(_array(5, 3, 2, 4))),
    "softmax": lambda a, y: relax.op.nn.softmax(a, -1),
    "softmax_other": lambda a, y: relax.op.nn.softmax(a, 1),
    "layer_norm_two_axes": lambda a, y: relax.op.nn.layer_norm(
        a, relax.const(_array(2, 4)), relax.const(_array(2, 4)), axes=[-2, -1]
    ),
    "batched": lambda a, y: relax.op.matmul(a, relax.const(_array(4, 5))),
    "permuted": lambda a, y: relax.op.permute_dims(a, [0, 2, 1, 3]),
}


@pytest.mark.parametrize("name", sorted(_AFTER_RESHAPE))
def test_every_rule_computes_the_same(name: str) -> None:
    parameters = [relax.Var(n, relax.TensorType((6, 4), "float32")) for n in "xy"]
    builder = relax.BlockBuilder()
    with builder.function("main", parameters):
        with builder.dataflow():
            a = builder.emit(relax.op.reshape(parameters[0], (1, 3, 2, 4)))
            middle = builder.emit(_AFTER_RESHAPE[name](a, parameters[1]))
            result = builder.emit_output(relax.op.nn.relu(middle))
        builder.emit_func_output(result)
    assert_computes_the_same(SinkReshapes(), builder.get())


def test_reshapes_before_other_operators_stay() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((6, 8), "float32")) -> R.Tensor((8, 2), "float32"):
            with R.dataflow():
                a = R.reshape(x, R.shape([2, 3, 8]))
                b = R.sum(a, axis=[1])
                c = R.permute_dims(b, axes=[1, 0])
                R.output(c)
            return c

    assert_left_alone(SinkReshapes(), Module)


def test_equal_constants_become_one_object() -> None:
    @I.ir_module
    class Module:
        @R.function
        def main(
            x: R.Tensor((4,), "float32"),
            a: R.Tensor((4,), "float32"),
            b: R.Tensor((4,), "float32"),
            c: R.Tensor((4,), "float32"),
        ) -> R.Tensor((4,), "float32"):
            with R.dataflow():
                p = R.add(x, a)
                q = R.multiply(p, b)
                r = R.add(q, c)
                R.output(r)
            return r

    ones, other = np.ones(4, "float32"), np.full(4, -0.0, "float32")
    module = with_weights(Module, a=ones, b=ones.copy(), c=other)
    after = assert_computes_the_same(CombineConstants(), module)
    first, second, third = (b.value.args[1] for b in after["main"].body.blocks[0].bindings)
    assert first.same_as(second)
    assert not first.same_as(third)
    assert operators(after) == ["add", "multiply", "add"]
