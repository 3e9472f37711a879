"""Transposed and one-dimensional convolutions as ordinary two-dimensional ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.subpixel import subpixel_axis, subpixel_weights
from tinsmith.passes.graph.tensors import (
    constant,
    constant_array,
    integers,
    operator_name,
    static_shape,
)


@tvm.transform.module_pass(opt_level=0, name="DecomposeConvolutions")
class DecomposeConvolutions:
    """Express transposed and 1-D convolution and 1-D pooling by `conv2d` and 2-D pooling.

    Before::

        y: (1, 4, 16, 16) = conv2d_transpose(x: (1, 8, 8, 8), const w: (8, 4, 2, 2), strides=2)

    After (the pixels of each 2x2 block are computed as channels, then spread)::

        a: (1, 16, 8, 8) = conv2d(x, const w: (16, 8, 1, 1))
        b: (1, 8, 8, 16) = permute_dims(a, axes=[0, 2, 3, 1])
        c: (1, 8, 8, 2, 2, 4) = reshape(b)
        d: (1, 8, 2, 8, 2, 4) = permute_dims(c, axes=[0, 1, 3, 2, 4, 5])
        e: (1, 16, 16, 4) = reshape(d)
        y: (1, 4, 16, 16) = permute_dims(e, axes=[0, 3, 1, 2])

    Any kernel, stride, padding, output padding, dilation and group count is
    covered. No zeros are inserted into the data; the kernel gets some where the
    phases see different inputs. Before::

        y: (1, 4, 10) = conv1d(x: (1, 8, 12), const w: (4, 8, 3))

    After::

        a: (1, 8, 1, 12) = reshape(x)
        b: (1, 4, 1, 10) = conv2d(a, const w: (4, 8, 1, 3))
        y: (1, 4, 10) = reshape(b)

    Left alone: 3-D convolution, other layouts than channels-first, symbolic
    shapes, and transposed convolutions whose weights are not constant.
    """

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return _Decomposer(module).run()


class _Decomposer(BlockRewriter):
    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        rule = _RULES.get(str(operator_name(value)))
        if rule is None or static_shape(value) is None or static_shape(value.args[0]) is None:
            return value
        layout = getattr(value.attrs, "data_layout", None) or value.attrs.layout
        out_layout = value.attrs.out_layout or layout
        if str(layout) not in ("NCW", "NCHW") or str(out_layout) != str(layout):
            return value
        return rule(self, value)

    def transposed_2d(self, call: relax.Call) -> relax.Expr:
        weights = constant_array(call.args[1])
        if weights is None or str(call.attrs.kernel_layout) != "IOHW":
            return call
        return self._transposed(
            call.args[0],
            weights,
            call,
            static_shape(call) or (),
            strides=integers(call.attrs.strides),
            padding=integers(call.attrs.padding)[:2],
            dilation=integers(call.attrs.dilation),
        )

    def transposed_1d(self, call: relax.Call) -> relax.Expr:
        weights = constant_array(call.args[1])
        shape = static_shape(call) or ()
        if weights is None or str(call.attrs.kernel_layout) != "IOW":
            return call
        result = self._transposed(
            self._with_height(call.args[0]),
            weights[:, :, None, :],
            call,
            (*shape[:2], 1, shape[2]),
            strides=(1, *integers(call.attrs.strides)),
            padding=(0, integers(call.attrs.padding)[0]),
            dilation=(1, *integers(call.attrs.dilation)),
        )
        return relax.op.reshape(self.emit(result), shape)

    def _transposed(
        self,
        data: relax.Expr,
        weights: np.ndarray,
        call: relax.Call,
        shape: Sequence[int],
        *,
        strides: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> relax.Expr:
        weights = _dilated(weights, dilation)
        in_shape = static_shape(data) or ()
        rows, columns = (
            subpixel_axis(
                in_shape[2 + axis],
                weights.shape[2 + axis],
                strides[axis],
                padding[axis],
                shape[2 + axis],
            )
            for axis in range(2)
        )
        groups = int(call.attrs.groups)
        convolved = self.emit(
            relax.op.nn.conv2d(
                data,
                constant(subpixel_weights(weights, groups, rows, columns)),
                padding=[rows.pad_before, columns.pad_before, rows.pad_after, columns.pad_after],
                groups=groups,
                out_dtype=call.attrs.out_dtype,
            )
        )
        if (rows.stride, columns.stride) == (1, 1):
            return convolved
        batch, outputs = shape[:2]
        # Channels last from here: the copy then moves whole vectors of channels, and the
        # permutation around it is what a convolution in NHWC gives anyway.
        blocks = self._emit_permuted(convolved, (0, 2, 3, 1))
        parts = (
            batch,
            rows.positions,
            columns.positions,
            groups,
            rows.stride,
            columns.stride,
            outputs // groups,
        )
        spread = self._emit_permuted(
            self.emit(relax.op.reshape(blocks, parts)), (0, 1, 4, 2, 5, 3, 6)
        )
        full = (batch, rows.positions * rows.stride, columns.positions * columns.stride, outputs)
        image = self.emit(relax.op.reshape(spread, full))
        if full[1:3] != (rows.extent, columns.extent):
            image = self.emit(
                relax.op.strided_slice(image, [1, 2], [0, 0], [rows.extent, columns.extent])
            )
        return relax.op.permute_dims(image, (0, 3, 1, 2))

    def _emit_permuted(self, expr: relax.Expr, axes: Sequence[int]) -> relax.Expr:
        return self.emit(relax.op.permute_dims(expr, list(axes)))

    def convolution_1d(self, call: relax.Call) -> relax.Expr:
        attrs = call.attrs
        shape = static_shape(call.args[1])
        if shape is None or str(attrs.kernel_layout) != "OIW":
            return call
        weights = constant_array(call.args[1])
        kernel = (*shape[:2], 1, shape[2])
        before, after = integers(attrs.padding)
        result = self.emit(
            relax.op.nn.conv2d(
                self._with_height(call.args[0]),
                self.emit(relax.op.reshape(call.args[1], kernel))
                if weights is None
                else constant(weights.reshape(kernel)),
                strides=[1, *integers(attrs.strides)],
                padding=[0, before, 0, after],
                dilation=[1, *integers(attrs.dilation)],
                groups=attrs.groups,
                out_dtype=attrs.out_dtype,
            )
        )
        return relax.op.reshape(result, static_shape(call))

    def max_pool_1d(self, call: relax.Call) -> relax.Expr:
        return self._pool_1d(call, relax.op.nn.max_pool2d)

    def avg_pool_1d(self, call: relax.Call) -> relax.Expr:
        return self._pool_1d(call, relax.op.nn.avg_pool2d)

    def _pool_1d(self, call: relax.Call, pool: Callable[..., relax.Expr]) -> relax.Expr:
        attrs: Any = call.attrs
        before, after = integers(attrs.padding)
        result = self.emit(
            pool(
                self._with_height(call.args[0]),
                pool_size=[1, *integers(attrs.pool_size)],
                strides=[1, *integers(attrs.strides)],
                padding=[0, before, 0, after],
                dilation=[1, *integers(attrs.dilation)],
                ceil_mode=attrs.ceil_mode,
                count_include_pad=attrs.count_include_pad,
            )
        )
        return relax.op.reshape(result, static_shape(call))

    def _with_height(self, expr: relax.Expr) -> relax.Expr:
        batch, channels, width = static_shape(expr) or ()
        return self.emit(relax.op.reshape(expr, (batch, channels, 1, width)))


def _dilated(weights: np.ndarray, dilation: Sequence[int]) -> np.ndarray:
    """The kernel with `dilation - 1` zeros between its taps."""
    if tuple(dilation) == (1, 1):
        return weights
    extents = [(k - 1) * d + 1 for k, d in zip(weights.shape[2:], dilation, strict=True)]
    result = np.zeros((*weights.shape[:2], *extents), weights.dtype)
    result[:, :, :: dilation[0], :: dilation[1]] = weights
    return result


_RULES: dict[str, Callable[[_Decomposer, relax.Call], relax.Expr]] = {
    "relax.nn.conv2d_transpose": _Decomposer.transposed_2d,
    "relax.nn.conv1d_transpose": _Decomposer.transposed_1d,
    "relax.nn.conv1d": _Decomposer.convolution_1d,
    "relax.nn.max_pool1d": _Decomposer.max_pool_1d,
    "relax.nn.avg_pool1d": _Decomposer.avg_pool_1d,
}
