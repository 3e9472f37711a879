"""Which Relax operators the CPU templates define themselves, and how.

Each function here is a legaliser as `relax.transform.LegalizeOps` takes it: it
replaces a high-level call by a `call_tir` of our own definition, with constant
weights packed right away. Calls that no template covers keep TVM's definition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax, te
from tvm.ir import Expr, GenericConst
from tvm.relax import BlockBuilder, Call

from targets.cpu.operators.convolution import (
    ConvolutionWorkload,
    define_convolution,
    pack_weights,
)
from targets.cpu.operators.matmul import MatmulWorkload, define_matmul, pack_columns
from targets.cpu.operators.window import ChannelwiseWorkload, define_channelwise
from targets.spec import TargetSpec

Legalizer = Callable[[BlockBuilder, Call], Expr]

# Relax's kOutEWiseFusable: elementwise operations that follow are fused into the kernel.
_FUSES_EPILOGUE = {"op_pattern": 4}


def legalize_map(spec: TargetSpec) -> dict[str, Legalizer]:
    """Legalisers for the operators that have a CPU template, by operator name."""
    return {
        "relax.nn.conv2d": lambda bb, call: _convolution(bb, call, spec),
        "relax.nn.max_pool2d": lambda bb, call: _pooling(bb, call, "maximum"),
        "relax.nn.avg_pool2d": lambda bb, call: _pooling(bb, call, "average"),
        "relax.matmul": lambda bb, call: _matmul(bb, call, spec),
    }


def _shape(expression: Expr) -> tuple[int, ...] | None:
    """The static shape of a float32 tensor; None for any other."""
    ty = expression.ty
    if not isinstance(ty, relax.TensorType) or str(ty.dtype) != "float32":
        return None
    if not isinstance(ty.shape, relax.ShapeExpr):
        return None
    if not all(isinstance(d, tvm.tirx.IntImm) for d in ty.shape.values):
        return None
    return tuple(int(d) for d in ty.shape.values)


def _default(bb: BlockBuilder, call: Call) -> Expr:
    """TVM's own definition."""
    legalize = call.op.get_attr("FLegalize")
    return call if legalize is None else legalize(bb, call)


def _emit(bb: BlockBuilder, name: str, define: Callable[..., te.Tensor], *operands: Expr) -> Expr:
    return bb.call_te(
        define, *operands, primfunc_name_hint=name, primfunc_attrs=dict(_FUSES_EPILOGUE)
    )


def _convolution(bb: BlockBuilder, call: Call, spec: TargetSpec) -> Expr:
    data, weights = call.args
    attrs = call.attrs
    shape, kernel, out = _shape(data), _shape(weights), _shape(call)
    supported = (
        str(attrs.data_layout) in ("NHWC", "NCHW")
        and str(attrs.kernel_layout) == "HWIO"
        and str(attrs.out_layout) == "NHWC"
    )
    if shape is None or kernel is None or out is None or not supported:
        return _default(bb, call)
    layout = str(attrs.data_layout)
    batch, height, width, channels = (
        shape if layout == "NHWC" else (shape[0], shape[2], shape[3], shape[1])
    )
    groups = int(attrs.groups)
    kernel_height, kernel_width, in_channels, out_channels = kernel
    strides, dilation, padding = _integers(attrs.strides, attrs.dilation, attrs.padding)
    geometry: dict[str, Any] = {
        "batch": batch,
        "in_height": height,
        "in_width": width,
        "out_height": out[1],
        "out_width": out[2],
        "kernel_height": kernel_height,
        "kernel_width": kernel_width,
        "stride_height": strides[0],
        "stride_width": strides[1],
        "dilation_height": dilation[0],
        "dilation_width": dilation[1],
        "pad_top": padding[0],
        "pad_left": padding[1],
    }
    if in_channels == 1 and groups == channels == out_channels > 1 and layout == "NHWC":
        depthwise = ChannelwiseWorkload(channels=channels, operation="multiply", **geometry)
        if isinstance(weights, GenericConst):
            flat = relax.const(
                np.ascontiguousarray(weights.value.numpy()[:, :, 0, :]), dtype="float32"
            )
            return _emit(
                bb, "depthwise", lambda d, w: define_channelwise(d, w, depthwise), data, flat
            )
        flat = bb.emit(relax.op.reshape(weights, (kernel_height, kernel_width, channels)))
        return _emit(bb, "depthwise", lambda d, w: define_channelwise(d, w, depthwise), data, flat)
    workload = ConvolutionWorkload(
        in_channels=in_channels,
        out_channels=out_channels // groups,
        groups=groups,
        lanes=spec.float_lanes,
        data_layout=layout,
        **geometry,
    )
    if isinstance(weights, GenericConst):
        packed = relax.const(pack_weights(weights.value.numpy(), groups, workload.lanes))
    else:
        packed = bb.emit(bb.call_te(lambda w: _pack_weights_te(w, workload), weights))
    return _emit(bb, "convolution", lambda d, w: define_convolution(d, w, workload), data, packed)


def _pack_weights_te(weights: te.Tensor, w: ConvolutionWorkload) -> te.Tensor:
    """`pack_weights` for weights that are known at run time only."""

    def element(g: Expr, b: Expr, kh: Expr, kw: Expr, ic: Expr, lane: Expr) -> Expr:
        channel = b * w.lanes + lane
        value = weights[kh, kw, ic, g * w.out_channels + channel]
        return tvm.tirx.if_then_else(
            channel < w.out_channels, value, tvm.tirx.const(0, weights.dtype)
        )

    shape = (w.groups, w.blocks, w.kernel_height, w.kernel_width, w.in_channels, w.lanes)
    return te.compute(shape, element, name="pack_weights")


def _pooling(bb: BlockBuilder, call: Call, operation: str) -> Expr:
    (data,) = call.args
    attrs = call.attrs
    shape, out = _shape(data), _shape(call)
    if shape is None or out is None or (str(attrs.layout), str(attrs.out_layout)) != ("NHWC",) * 2:
        return _default(bb, call)
    pool, strides, dilation, padding = _integers(
        attrs.pool_size, attrs.strides, attrs.dilation, attrs.padding
    )
    workload = ChannelwiseWorkload(
        batch=shape[0],
        channels=shape[3],
        in_height=shape[1],
        in_width=shape[2],
        out_height=out[1],
        out_width=out[2],
        kernel_height=pool[0],
        kernel_width=pool[1],
        stride_height=strides[0],
        stride_width=strides[1],
        dilation_height=dilation[0],
        dilation_width=dilation[1],
        pad_top=padding[0],
        pad_left=padding[1],
        pad_bottom=padding[2],
        pad_right=padding[3],
        operation=operation,
        count_padding=bool(attrs.count_include_pad) and operation == "average",
    )
    return _emit(bb, operation, lambda d: define_channelwise(d, None, workload), data)


def _matmul(bb: BlockBuilder, call: Call, spec: TargetSpec) -> Expr:
    left, right = call.args
    a, b, out = _shape(left), _shape(right), _shape(call)
    if a is None or b is None or out is None or len(a) < 2 or len(b) < 2:
        return _default(bb, call)
    constant = isinstance(right, GenericConst) and len(b) == 2
    workload = MatmulWorkload(
        batch=out[:-2],
        left_batch=a[:-2],
        right_batch=b[:-2],
        m=a[-2],
        n=b[-1],
        k=a[-1],
        lanes=spec.float_lanes if constant else 0,
    )
    if constant:
        right = relax.const(pack_columns(right.value.numpy(), workload.lanes))
    return _emit(bb, "matmul", lambda x, y: define_matmul(x, y, workload), left, right)


def _integers(*arrays: Any) -> list[list[int]]:
    return [[int(i) for i in array] for array in arrays]
