"""Convolutions, pooling and resizing in channels-last layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.graph.conditions import CHANNELS_LAST, layouts
from tinsmith.passes.graph.quantized_constants import is_quantized_constant, permuted_quantized
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import constant, constant_array, operator_name, static_shape

_TO_NHWC = (0, 2, 3, 1)
_TO_NCHW = (0, 3, 1, 2)
_OIHW_TO_HWIO = (2, 3, 1, 0)


@tvm.transform.module_pass(opt_level=0, name="ConvertLayout")
class ConvertLayout:
    """Compute 2-D convolution, pooling and resizing in NHWC.

    Before::

        y: (1, 16, 8, 8) = conv2d(x: (1, 3, 8, 8), const w: (16, 3, 3, 3), padding=1)

    After::

        a: (1, 8, 8, 3) = permute_dims(x, axes=[0, 2, 3, 1])
        b: (1, 8, 8, 16) = conv2d(a, const w: (3, 3, 3, 16), padding=1,
                                  data_layout="NHWC", kernel_layout="HWIO")
        y: (1, 16, 8, 8) = permute_dims(b, axes=[0, 3, 1, 2])

    Constant weights are permuted here, as integers if they are quantised;
    grouped and depthwise weights become `[KH, KW, IC/groups, OC]`. Other weights
    get a `permute_dims`. The permutations of the data are local on purpose:
    `CancelTransposes` moves and removes them.

    Left alone: convolutions of one and three dimensions, transposed ones,
    and calls that are not in NCHW (or OIHW).
    """

    ensures = (CHANNELS_LAST,)

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return _Converter(module).run()


class _Converter(BlockRewriter):
    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        name = operator_name(value)
        make = _CHANNELS_LAST.get(str(name))
        if make is None or len(static_shape(value) or ()) != 4:
            return value
        if layouts(value) != ("NCHW", "NCHW"):
            return value
        operands = list(value.args)
        if name == "relax.nn.conv2d":
            if str(value.attrs.kernel_layout) != "OIHW":
                return value
            operands[1] = self._permuted_weights(operands[1])
        operands[0] = self.emit(relax.op.permute_dims(operands[0], _TO_NHWC))
        result = self.emit(make(value.attrs, *operands))
        return relax.op.permute_dims(result, _TO_NCHW)

    def _permuted_weights(self, weights: relax.Expr) -> relax.Expr:
        quantized = self.definition(weights)
        if is_quantized_constant(quantized):
            return self.emit(permuted_quantized(quantized, _OIHW_TO_HWIO))
        array = constant_array(weights)
        if array is None:
            return self.emit(relax.op.permute_dims(weights, _OIHW_TO_HWIO))
        return constant(np.ascontiguousarray(array.transpose(_OIHW_TO_HWIO)))


def _convolution(attrs: Any, data: relax.Expr, weights: relax.Expr) -> relax.Expr:
    return relax.op.nn.conv2d(
        data,
        weights,
        strides=list(attrs.strides),
        padding=list(attrs.padding),
        dilation=list(attrs.dilation),
        groups=attrs.groups,
        data_layout="NHWC",
        kernel_layout="HWIO",
        out_layout="NHWC",
        out_dtype=attrs.out_dtype,
    )


def _pooling(operator: Callable[..., relax.Expr]) -> Callable[..., relax.Expr]:
    def make(attrs: Any, data: relax.Expr) -> relax.Expr:
        return operator(
            data,
            pool_size=list(attrs.pool_size),
            strides=list(attrs.strides),
            padding=list(attrs.padding),
            dilation=list(attrs.dilation),
            ceil_mode=attrs.ceil_mode,
            count_include_pad=attrs.count_include_pad,
            layout="NHWC",
            out_layout="NHWC",
        )

    return make


def _adaptive_pooling(attrs: Any, data: relax.Expr) -> relax.Expr:
    size = None if attrs.output_size is None else list(attrs.output_size)
    return relax.op.nn.adaptive_avg_pool2d(data, size, layout="NHWC", out_layout="NHWC")


def _resize(attrs: Any, data: relax.Expr, size: relax.Expr) -> relax.Expr:
    return relax.op.image.resize2d(
        data,
        size,
        roi=[float(value) for value in attrs.roi],
        layout="NHWC",
        method=attrs.method,
        coordinate_transformation_mode=attrs.coordinate_transformation_mode,
        rounding_method=attrs.rounding_method,
        cubic_alpha=attrs.cubic_alpha,
        cubic_exclude=attrs.cubic_exclude,
        extrapolation_value=attrs.extrapolation_value,
        out_dtype=attrs.out_dtype,
    )


_CHANNELS_LAST: dict[str, Callable[..., relax.Expr]] = {
    "relax.nn.conv2d": _convolution,
    "relax.nn.max_pool2d": _pooling(relax.op.nn.max_pool2d),
    "relax.nn.avg_pool2d": _pooling(relax.op.nn.avg_pool2d),
    "relax.nn.adaptive_avg_pool2d": _adaptive_pooling,
    "relax.image.resize2d": _resize,
}
