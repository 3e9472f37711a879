"""Graphs before and after they lost channels: shapes, constants and attributes."""

from __future__ import annotations

import numpy as np
import tvm
from graph_checks import with_weights
from tvm import relax
from tvm.script import ir as I  # noqa: N812
from tvm.script import relax as R  # noqa: N812

from tinsmith.passes.prune import Shrink, ZeroChannels

_RANDOM = np.random.default_rng(0)


def _array(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype("float32")


def _assert_becomes(step: tvm.transform.Pass, before: tvm.IRModule, after: tvm.IRModule) -> None:
    result = step(before)
    relax.analysis.well_formed(result)
    expected = relax.transform.Normalize()(after)
    tvm.ir.assert_structural_equal(result, expected, map_free_vars=True)


@I.ir_module
class _Residual:
    @R.function
    def main(
        x: R.Tensor((1, 3, 8, 8), "float32"),
        w: R.Tensor((4, 3, 1, 1), "float32"),
        gamma: R.Tensor((4,), "float32"),
        beta: R.Tensor((4,), "float32"),
        mean: R.Tensor((4,), "float32"),
        variance: R.Tensor((4,), "float32"),
        depthwise: R.Tensor((4, 1, 3, 3), "float32"),
        bias: R.Tensor((1, 4, 1, 1), "float32"),
        head: R.Tensor((4, 2), "float32"),
    ) -> R.Tensor((1, 2), "float32"):
        with R.dataflow():
            a = R.nn.conv2d(x, w)
            t = R.nn.batch_norm(a, gamma, beta, mean, variance, axis=1)
            b = R.nn.relu(t[0])
            c = R.nn.conv2d(b, depthwise, padding=1, groups=4)
            d = R.add(c, bias)
            e = R.add(d, b)
            f = R.mean(e, axis=[2, 3])
            y = R.matmul(f, head)
            R.output(y)
        return y


def _weights() -> dict[str, np.ndarray]:
    names = ("gamma", "beta", "mean", "variance")
    return {
        "w": _array(4, 3, 1, 1),
        **{name: _array(4) for name in names},
        "depthwise": _array(4, 1, 3, 3),
        "bias": _array(1, 4, 1, 1),
        "head": _array(4, 2),
    }


def test_convolutions_batch_norm_residual_and_head() -> None:
    @I.ir_module
    class After:
        @R.function
        def main(
            x: R.Tensor((1, 3, 8, 8), "float32"),
            w: R.Tensor((2, 3, 1, 1), "float32"),
            gamma: R.Tensor((2,), "float32"),
            beta: R.Tensor((2,), "float32"),
            mean: R.Tensor((2,), "float32"),
            variance: R.Tensor((2,), "float32"),
            depthwise: R.Tensor((2, 1, 3, 3), "float32"),
            bias: R.Tensor((1, 2, 1, 1), "float32"),
            head: R.Tensor((2, 2), "float32"),
        ) -> R.Tensor((1, 2), "float32"):
            with R.dataflow():
                a = R.nn.conv2d(x, w)
                t = R.nn.batch_norm(a, gamma, beta, mean, variance, axis=1)
                b = R.nn.relu(t[0])
                c = R.nn.conv2d(b, depthwise, padding=1, groups=2)
                d = R.add(c, bias)
                e = R.add(d, b)
                f = R.mean(e, axis=[2, 3])
                y = R.matmul(f, head)
                R.output(y)
            return y

    before, keep = _weights(), [1, 3]
    after = {name: array[keep] for name, array in before.items() if name != "bias"}
    after["bias"] = before["bias"][:, keep]
    step = Shrink({0: np.array(keep)})
    _assert_becomes(step, with_weights(_Residual, **before), with_weights(After, **after))


def test_zeroed_producers_leave_the_graph_as_it_is() -> None:
    before = _weights()
    after = {name: array.copy() for name, array in before.items()}
    for name, array in after.items():
        if name != "head":
            np.moveaxis(array, 1 if name == "bias" else 0, 0)[[0, 2]] = 0
    step = ZeroChannels({0: np.array([1, 3])})
    _assert_becomes(step, with_weights(_Residual, **before), with_weights(_Residual, **after))


def test_bounds_of_splits_slices_and_paddings() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 3, 8, 8), "float32"),
            w: R.Tensor((8, 3, 1, 1), "float32"),
            last: R.Tensor((1, 10, 1, 1), "float32"),
        ) -> R.Tensor((1, 1, 8, 8), "float32"):
            with R.dataflow():
                a = R.nn.conv2d(x, w)
                parts = R.split(a, 2, axis=1)
                first = parts[0]
                second = parts[1]
                b = R.multiply(first, second)
                c = R.nn.pad(b, [0, 0, 1, 1, 0, 0, 0, 0])
                d = R.strided_slice(a, [1], [2], [6])
                e = R.concat((c, d), axis=1)
                y = R.nn.conv2d(e, last)
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(
            x: R.Tensor((1, 3, 8, 8), "float32"),
            w: R.Tensor((4, 3, 1, 1), "float32"),
            last: R.Tensor((1, 6, 1, 1), "float32"),
        ) -> R.Tensor((1, 1, 8, 8), "float32"):
            with R.dataflow():
                a = R.nn.conv2d(x, w)
                parts = R.split(a, [2], axis=1)
                first = parts[0]
                second = parts[1]
                b = R.multiply(first, second)
                c = R.nn.pad(b, [0, 0, 1, 1, 0, 0, 0, 0])
                d = R.strided_slice(a, [1], [1], [3], [1])
                e = R.concat((c, d), axis=1)
                y = R.nn.conv2d(e, last)
                R.output(y)
            return y

    # Channels go with that of the other half; those of the padding stay.
    w, last = _array(8, 3, 1, 1), _array(1, 10, 1, 1)
    after = {"w": w[[1, 2, 5, 6]], "last": last[:, [0, 2, 3, 5, 6, 9]]}
    step = Shrink({0: np.array([1, 2])})
    _assert_becomes(step, with_weights(Before, w=w, last=last), with_weights(After, **after))


def test_groups_of_convolutions_and_normalisations() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 3, 4, 4), "float32"),
            w: R.Tensor((8, 3, 1, 1), "float32"),
            gamma: R.Tensor((8,), "float32"),
            beta: R.Tensor((8,), "float32"),
            grouped: R.Tensor((12, 2, 1, 1), "float32"),
            up: R.Tensor((12, 3, 2, 2), "float32"),
            last: R.Tensor((1, 6, 1, 1), "float32"),
        ) -> R.Tensor((1, 1, 8, 8), "float32"):
            with R.dataflow():
                a = R.nn.conv2d(x, w)
                b = R.nn.group_norm(a, gamma, beta, 4, channel_axis=1, axes=[2, 3])
                c = R.nn.conv2d(b, grouped, groups=4)
                d = R.nn.conv2d_transpose(c, up, strides=2, groups=2)
                y = R.nn.conv2d(d, last)
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(
            x: R.Tensor((1, 3, 4, 4), "float32"),
            w: R.Tensor((4, 3, 1, 1), "float32"),
            gamma: R.Tensor((4,), "float32"),
            beta: R.Tensor((4,), "float32"),
            grouped: R.Tensor((6, 2, 1, 1), "float32"),
            up: R.Tensor((6, 2, 2, 2), "float32"),
            last: R.Tensor((1, 4, 1, 1), "float32"),
        ) -> R.Tensor((1, 1, 8, 8), "float32"):
            with R.dataflow():
                a = R.nn.conv2d(x, w)
                b = R.nn.group_norm(a, gamma, beta, 2, channel_axis=1, axes=[2, 3])
                c = R.nn.conv2d(b, grouped, groups=2)
                d = R.nn.conv2d_transpose(c, up, strides=2, groups=2)
                y = R.nn.conv2d(d, last)
                R.output(y)
            return y

    w, gamma, beta, grouped = _array(8, 3, 1, 1), _array(8), _array(8), _array(12, 2, 1, 1)
    up, last = _array(12, 3, 2, 2), _array(1, 6, 1, 1)
    before = with_weights(Before, w=w, gamma=gamma, beta=beta, grouped=grouped, up=up, last=last)
    # The four groups of the first product meet the two of the second: group 0 goes with 2.
    after = with_weights(
        After,
        w=w[[2, 3, 6, 7]],
        gamma=gamma[[2, 3, 6, 7]],
        beta=beta[[2, 3, 6, 7]],
        grouped=grouped[[3, 4, 5, 9, 10, 11]],
        up=up[[3, 4, 5, 9, 10, 11]][:, [0, 2]],
        last=last[:, [0, 2, 3, 5]],
    )
    _assert_becomes(Shrink({0: np.array([1]), 1: np.array([0, 2])}), before, after)


def test_targets_of_reshapes_of_heads() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 5, 8), "float32"),
            wq: R.Tensor((8, 12), "float32"),
            wk: R.Tensor((8, 12), "float32"),
            wv: R.Tensor((8, 12), "float32"),
            last: R.Tensor((12, 8), "float32"),
        ) -> R.Tensor((1, 5, 8), "float32"):
            with R.dataflow():
                q = R.permute_dims(R.reshape(R.matmul(x, wq), (1, 5, 3, 4)), [0, 2, 1, 3])
                k = R.permute_dims(R.reshape(R.matmul(x, wk), (1, 5, 3, 4)), [0, 2, 3, 1])
                v = R.permute_dims(R.reshape(R.matmul(x, wv), (1, 5, 3, 4)), [0, 2, 1, 3])
                mixed = R.matmul(R.nn.softmax(R.matmul(q, k)), v)
                y = R.matmul(R.reshape(R.permute_dims(mixed, [0, 2, 1, 3]), (1, 5, 12)), last)
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(
            x: R.Tensor((1, 5, 8), "float32"),
            wq: R.Tensor((8, 8), "float32"),
            wk: R.Tensor((8, 8), "float32"),
            wv: R.Tensor((8, 8), "float32"),
            last: R.Tensor((8, 8), "float32"),
        ) -> R.Tensor((1, 5, 8), "float32"):
            with R.dataflow():
                q = R.permute_dims(R.reshape(R.matmul(x, wq), (1, 5, 2, 4)), [0, 2, 1, 3])
                k = R.permute_dims(R.reshape(R.matmul(x, wk), (1, 5, 2, 4)), [0, 2, 3, 1])
                v = R.permute_dims(R.reshape(R.matmul(x, wv), (1, 5, 2, 4)), [0, 2, 1, 3])
                mixed = R.matmul(R.nn.softmax(R.matmul(q, k)), v)
                y = R.matmul(R.reshape(R.permute_dims(mixed, [0, 2, 1, 3]), (1, 5, 8)), last)
                R.output(y)
            return y

    wq, wk, wv, last = _array(8, 12), _array(8, 12), _array(8, 12), _array(12, 8)
    kept = [0, 1, 2, 3, 8, 9, 10, 11]
    after = {"wq": wq[:, kept], "wk": wk[:, kept], "wv": wv[:, kept], "last": last[kept]}
    before = with_weights(Before, wq=wq, wk=wk, wv=wv, last=last)
    _assert_becomes(Shrink({0: np.array([0, 2])}), before, with_weights(After, **after))
