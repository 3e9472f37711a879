"""Which Relax operators the CPU templates define themselves, and how.

Each function here is a legaliser as `relax.transform.LegalizeOps` takes it: it
replaces a high-level call by a `call_tir` of our own definition, with constant
weights packed right away. Calls that no template covers keep TVM's definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, topi
from tvm.ir import Expr, GenericConst
from tvm.relax import BlockBuilder, Call

from tinsmith.targets.algorithms import AlgorithmLookup
from tinsmith.targets.backend import Legalizer
from tinsmith.targets.compressed_weights import CompressedWeights, compressed_weights
from tinsmith.targets.cpu.arithmetic import Arithmetic, choose_arithmetic
from tinsmith.targets.cpu.operators.algorithms import winograd_tile
from tinsmith.targets.cpu.operators.compressed_weights import CompressedForm, stored_operands
from tinsmith.targets.cpu.operators.convolution import (
    ConvolutionWorkload,
    define_convolution,
    pack_weights,
)
from tinsmith.targets.cpu.operators.elementwise import elementwise_legalizers
from tinsmith.targets.cpu.operators.matmul import (
    MatmulWorkload,
    define_matmul,
    pack_columns,
    pack_columns_at_run_time,
)
from tinsmith.targets.cpu.operators.operands import (
    StaticTensor,
    constant_border,
    static_tensor,
    without_zero_point,
)
from tinsmith.targets.cpu.operators.sorting import sorting_legalizers
from tinsmith.targets.cpu.operators.window import (
    CHANNELWISE_DTYPES,
    ChannelwiseWorkload,
    define_channelwise,
)
from tinsmith.targets.cpu.operators.winograd import (
    WinogradWorkload,
    define_winograd,
    pack_taps,
    transform_weights,
)
from tinsmith.targets.half_weights import half_dtype, numpy_dtype
from tinsmith.targets.spec import TargetSpec

# So many products of two bytes add up to less than 2^24, whatever they are.
_EXACT_TERMS = 512

# With so many rows decompressing costs little, by bits of a code; weights of so many bytes come
# from memory, where fewer of them are faster anyway (measured on Zen 3).
_ROWS_THAT_PAY = {8: 16, 4: 32}
_FROM_MEMORY = 8 * 2**20

# Relax's kOutEWiseFusable: elementwise operations that follow are fused into the kernel.
_FUSES_EPILOGUE = {"op_pattern": 4}


def legalize_map(
    spec: TargetSpec, algorithms: AlgorithmLookup | None = None
) -> dict[str, Legalizer]:
    """Legalisers for the operators that have a CPU template, by operator name.

    `algorithms` knows by which algorithm some convolutions are computed best; others go
    by a rule.
    """
    return {
        "relax.nn.conv2d": lambda bb, call: _convolution(bb, call, spec, algorithms),
        "relax.nn.max_pool2d": lambda bb, call: _pooling(bb, call, "maximum"),
        "relax.nn.avg_pool2d": lambda bb, call: _pooling(bb, call, "average"),
        "relax.matmul": lambda bb, call: _matmul(bb, call, spec),
        **elementwise_legalizers(),
        **sorting_legalizers(),
    }


def _default(bb: BlockBuilder, call: Call) -> Expr:
    """TVM's own definition, which reads float weights."""
    stored = _compressed(bb, call.args[-1])
    if stored is not None:
        arguments = [*call.args[:-1], _constant(stored.dequantize())]
        call = bb.normalize(Call(call.op, arguments, call.attrs, call.ty_args))
    legalize = call.op.get_attr("FLegalize")
    return call if legalize is None else legalize(bb, call)


def _compressed(bb: BlockBuilder, weights: Expr) -> CompressedWeights | None:
    """The compressed weights that a variable stands for."""
    if not isinstance(weights, relax.Var):
        return None
    return compressed_weights(bb.lookup_binding(weights))


def _emit(bb: BlockBuilder, name: str, define: Callable[..., te.Tensor], *operands: Expr) -> Expr:
    return bb.call_te(
        define, *operands, primfunc_name_hint=name, primfunc_attrs=dict(_FUSES_EPILOGUE)
    )


def _convolution(
    bb: BlockBuilder, call: Call, spec: TargetSpec, algorithms: AlgorithmLookup | None
) -> Expr:
    data, weights = call.args
    attrs = call.attrs
    x, kernel, out = static_tensor(data), static_tensor(weights), static_tensor(call)
    supported = (
        str(attrs.data_layout) in ("NHWC", "NCHW")
        and str(attrs.kernel_layout) == "HWIO"
        and str(attrs.out_layout) == "NHWC"
    )
    if x is None or kernel is None or out is None or not supported:
        return _default(bb, call)
    layout = str(attrs.data_layout)
    strides, dilation, padding = _integers(attrs.strides, attrs.dilation, attrs.padding)
    border = None if any(padding) else constant_border(bb, data, layout)
    pad_value = 0
    if border is not None:
        data, padding, pad_value = border.data, list(border.padding), border.value
        x = static_tensor(data) or x
    groups = int(attrs.groups)
    kernel_height, kernel_width, in_channels, out_channels = kernel.shape
    batch, height, width = (x.shape[0], *(x.shape[1:3] if layout == "NHWC" else x.shape[2:4]))
    geometry: dict[str, Any] = {
        "batch": batch,
        "in_height": height,
        "in_width": width,
        "out_height": out.shape[1],
        "out_width": out.shape[2],
        "kernel_height": kernel_height,
        "kernel_width": kernel_width,
        "stride_height": strides[0],
        "stride_width": strides[1],
        "dilation_height": dilation[0],
        "dilation_width": dilation[1],
        "pad_top": padding[0],
        "pad_left": padding[1],
        "pad_value": pad_value,
    }
    depthwise = in_channels == 1 and groups == out_channels > 1 and layout == "NHWC"
    # Integer products are summed in float32 there, exactly as long as they are few.
    few = kernel_height * kernel_width <= _EXACT_TERMS
    depthwise = depthwise and (few or out.dtype != "int32")
    stored = _compressed(bb, weights)
    if depthwise and stored is None and (x.dtype, kernel.dtype, out.dtype) in CHANNELWISE_DTYPES:
        window = ChannelwiseWorkload(
            channels=out_channels, operation="multiply", dtype=x.dtype, **geometry
        )
        flat = _reshaped(bb, weights, (kernel_height, kernel_width, out_channels))
        if x.dtype == "bfloat16":
            flat = _widened(bb, flat)
        return _emit(bb, "depthwise", lambda d, w: define_channelwise(d, w, window), data, flat)
    # A step of several channels must not reach into the next group.
    most_depth = 8 if groups == 1 else math.gcd(in_channels, 8)
    if in_channels <= 4:
        most_depth = min(most_depth, 4)
    stored_dtype = _stored_dtype(weights) or kernel.dtype
    arithmetic = choose_arithmetic(x.dtype, stored_dtype, spec, most_depth)
    if arithmetic is None or arithmetic.accumulator != out.dtype:
        return _default(bb, call)
    whole = in_channels
    if groups == 1:
        taps = kernel_width if dilation[1] == 1 else 1
        whole = _whole_steps(in_channels, arithmetic, spec, taps)
    if arithmetic.depth > 1:
        data, layout = _whole_channels(bb, data, x, layout, groups * whole), "NHWC"
    workload = ConvolutionWorkload(
        in_channels=whole,
        out_channels=out_channels // groups,
        groups=groups,
        lanes=arithmetic.lanes(spec),
        data_layout=layout,
        arithmetic=arithmetic.name,
        **geometry,
    )
    if stored is not None and stored.optional and winograd_tile(workload, spec, algorithms):
        # That is worth more than small weights, of which it has no use.
        floats = [call.args[0], _constant(stored.dequantize())]
        plain = bb.normalize(Call(call.op, floats, call.attrs, call.ty_args))
        return _convolution(bb, plain, spec, algorithms)
    if stored is not None:
        workload = replace(workload, compressed=CompressedForm.of(stored))
        packs = stored_operands(stored, lambda a: pack_weights(a, groups, arithmetic.lanes(spec)))
        operands = [_constant(packed) for packed in packs]
    elif isinstance(weights, GenericConst):
        tile = winograd_tile(workload, spec, algorithms)
        if tile is not None:
            return _winograd(bb, data, weights, WinogradWorkload(workload, tile))
        values = weights.value.numpy().astype(numpy_dtype(stored_dtype), copy=False)
        filled = np.pad(values, [(0, 0)] * 2 + [(0, whole - in_channels), (0, 0)])
        operands = [
            _constant(pack_weights(filled, groups, arithmetic.lanes(spec), arithmetic.depth))
        ]
    elif arithmetic.depth == 1:
        operands = [
            bb.emit(
                bb.call_te(
                    lambda w: _pack_weights_te(w, workload),
                    weights,
                    primfunc_name_hint="pack_weights",
                )
            )
        ]
    else:
        return _default(bb, call)
    return _emit(
        bb, "convolution", lambda d, *w: define_convolution(d, w, workload), data, *operands
    )


def _winograd(
    bb: BlockBuilder, data: Expr, weights: GenericConst, workload: WinogradWorkload
) -> Expr:
    values, lanes = weights.value.numpy(), workload.convolution.lanes
    stored = _stored_dtype(weights)
    if stored is None:
        operand = _constant(transform_weights(values, workload.tile, lanes))
    else:
        operand = _constant(pack_taps(values.astype(numpy_dtype(stored)), lanes))
    return _emit(bb, "winograd", lambda d, w: define_winograd(d, w, workload), data, operand)


def _stored_dtype(weights: Expr) -> str | None:
    """The shorter float in which constant float32 weights are stored."""
    return half_dtype(weights.value.numpy()) if isinstance(weights, GenericConst) else None


def _constant(values: np.ndarray) -> Expr:
    return relax.const(values, dtype=str(values.dtype))


def _reshaped(bb: BlockBuilder, tensor: Expr, shape: tuple[int, ...]) -> Expr:
    """`tensor` in another shape, at compile time if it is constant."""
    if isinstance(tensor, GenericConst):
        return _constant(np.ascontiguousarray(tensor.value.numpy().reshape(shape)))
    return bb.emit(relax.op.reshape(tensor, shape))


def _widened(bb: BlockBuilder, tensor: Expr) -> Expr:
    """`tensor` in float32, at compile time if it is constant."""
    if isinstance(tensor, GenericConst):
        return _constant(tensor.value.numpy().astype("float32"))
    return bb.emit(relax.op.astype(tensor, "float32"))


def _whole_steps(channels: int, arithmetic: Arithmetic, spec: TargetSpec, taps: int = 1) -> int:
    """To how many channels a pixel is filled up, so that the reduction takes whole steps.

    `taps` neighbouring pixels are reduced in one go.
    """
    steps = arithmetic.whole_steps(-(-channels // arithmetic.depth), taps, spec)
    return steps * arithmetic.depth


def _whole_channels(bb: BlockBuilder, data: Expr, x: StaticTensor, layout: str, whole: int) -> Expr:
    """`data` as NHWC with `whole` channels, zeros where it had none.

    The copy is elementwise: fusion computes it where the data are produced.
    """
    order = (0, 1, 2, 3) if layout == "NHWC" else (0, 2, 3, 1)
    n, h, w, c = (x.shape[i] for i in order)
    if layout == "NHWC" and whole == c:
        return data

    def element(tensor: te.Tensor, position: list[Expr]) -> Expr:
        indices = position if layout == "NHWC" else [position[i] for i in (0, 3, 1, 2)]
        value = tensor[tuple(indices)]
        if whole == c:
            return value
        return tvm.tirx.if_then_else(position[3] < c, value, tvm.tirx.const(0, x.dtype))

    def define(tensor: te.Tensor) -> te.Tensor:
        return te.compute(
            (n, h, w, whole), lambda *position: element(tensor, list(position)), name="channels"
        )

    return bb.emit(bb.call_te(define, data, primfunc_name_hint="channels"))


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
    x, result = static_tensor(data), static_tensor(call)
    if x is None or result is None or (str(attrs.layout), str(attrs.out_layout)) != ("NHWC",) * 2:
        return _default(bb, call)
    floating = x.dtype in ("float32", "bfloat16")
    if not floating and (operation != "maximum" or x.dtype not in ("uint8", "int8")):
        return _default(bb, call)
    shape, out = x.shape, result.shape
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
        dtype=x.dtype,
        count_padding=bool(attrs.count_include_pad) and operation == "average",
    )
    pooled = _emit(bb, operation, lambda d: define_channelwise(d, None, workload), data)
    if x.dtype != "bfloat16":
        return pooled
    return relax.op.astype(bb.emit(pooled), "bfloat16")


def _matmul(bb: BlockBuilder, call: Call, spec: TargetSpec) -> Expr:
    left, right = call.args
    a, b, out = static_tensor(left), static_tensor(right), static_tensor(call)
    if a is None or b is None or out is None or len(a.shape) < 2 or len(b.shape) < 2:
        return _default(bb, call)
    stored = _compressed(bb, right)
    if stored is not None and stored.optional and _faster_as_floats(stored, out.shape):
        right, stored = _constant(stored.dequantize()), None
    constant = stored is not None or (isinstance(right, GenericConst) and len(b.shape) == 2)
    left, zero_point = without_zero_point(bb, left)
    a = static_tensor(left) or a
    # Bytes are packed at run time, floats only at compile time.
    # Two rows at once are of no use to a vector.
    deepest = 4 if a.shape[-2] == 1 else 8
    most_depth = deepest if constant or b.dtype == "int8" else 1
    stored_dtype = (_stored_dtype(right) if constant else None) or b.dtype
    arithmetic = choose_arithmetic(a.dtype, stored_dtype, spec, most_depth)
    if arithmetic is None or arithmetic.accumulator != out.dtype:
        return _default(bb, call)
    packed = constant or arithmetic.depth > 1
    k = a.shape[-1]
    whole = -(-k // arithmetic.depth) * arithmetic.depth
    if constant:
        whole = _whole_steps(k, arithmetic, spec)
    if whole != k:
        widths = [0] * (len(a.shape) - 1) + [whole - k]
        left = bb.emit(
            bb.call_te(
                lambda t: topi.nn.pad(t, [0] * len(a.shape), widths, 0.0),
                left,
                primfunc_name_hint="pad",
            )
        )
    workload = MatmulWorkload(
        batch=out.shape[:-2],
        left_batch=a.shape[:-2],
        right_batch=b.shape[:-2],
        m=a.shape[-2],
        n=b.shape[-1],
        k=whole,
        lanes=arithmetic.lanes(spec) if packed else 0,
        arithmetic=arithmetic.name,
        zero_point=zero_point,
    )
    operands = [right]
    if stored is not None:
        workload = replace(workload, compressed=CompressedForm.of(stored))
        packs = stored_operands(stored, lambda array: pack_columns(array, arithmetic.lanes(spec)))
        operands = [_constant(packed) for packed in packs]
    elif constant:
        values = right.value.numpy().astype(numpy_dtype(stored_dtype), copy=False)
        filled = np.pad(values, [(0, whole - k), (0, 0)])
        operands = [_constant(pack_columns(filled, arithmetic.lanes(spec), arithmetic.depth))]
    elif packed:
        pack = bb.call_te(
            lambda y: pack_columns_at_run_time(y, whole, arithmetic.lanes(spec), arithmetic.depth),
            right,
            primfunc_name_hint="pack_columns",
        )
        operands = [bb.emit(pack)]
    return _emit(bb, "matmul", lambda x, *y: define_matmul(x, y, workload), left, *operands)


def _faster_as_floats(stored: CompressedWeights, shape: tuple[int, ...]) -> bool:
    """Whether a product `[..., M, N]` has too few rows to pay for what decompressing costs.

    A single row reads weights that fit into no cache, or nearly so, as do larger matrices.
    """
    rows = math.prod(shape[:-1])
    return 1 < rows < _ROWS_THAT_PAY[stored.bits] and 4 * stored.codes.size < _FROM_MEMORY


def _integers(*arrays: Any) -> list[list[int]]:
    return [[int(i) for i in array] for array in arrays]
