"""Slice, TopK, Split and Pad with bounds that are known: every case of the standard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters.constants import (
    as_numpy,
    constant,
    dtype_of,
    static_shape,
    zeros,
)


def integers(value: relax.Expr | None, what: str) -> list[int] | None:
    """The integers in a constant; None if absent; ValueError if not known at compile time."""
    if value is None:
        return None
    array = as_numpy(value)
    if array is None:
        raise ValueError(f"{what} depend on data; only constants are supported")
    return [int(item) for item in array.reshape(-1)]


def take(bb: relax.BlockBuilder, x: relax.Expr, indices: np.ndarray, axis: int) -> relax.Expr:
    """The entries `indices` of `x` along `axis`."""
    return bb.normalize(
        relax.op.take(x, constant(indices.astype(np.int64)), axis=axis, mode="clip")
    )


class Slice(OnnxOpConverter):
    """`x[start:end:step]` along some axes, with Python's rules for negative and large bounds."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        starts, ends = list(attr["starts"]), list(attr["ends"])
        return _slice(bb, inputs[0], starts, ends, attr.get("axes"), None)

    @classmethod
    def _impl_v10(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        bounds = inputs[1:5]
        if any(bound is not None and as_numpy(bound) is None for bound in bounds):
            return onnx_frontend.Slice._impl_v13(bb, inputs, attr, params)
        starts, ends, axes, steps = (integers(bound, "bounds") for bound in bounds)
        return _slice(bb, inputs[0], starts or [], ends or [], axes, steps)


def _slice(
    bb: relax.BlockBuilder,
    x: relax.Expr,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> relax.Expr:
    shape = static_shape(x)
    axes = [axis % len(shape) for axis in (range(len(starts)) if axes is None else axes)]
    steps = steps or [1] * len(axes)
    forward = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        first, last, stride = slice(start, end, step).indices(shape[axis])
        if (first, last, stride) == (0, shape[axis], 1):
            continue
        if stride < 0:
            x = take(bb, x, np.arange(first, last, stride), axis)
        else:
            forward.append((axis, first, max(first, last), stride))
    if not forward:
        return x
    axes, begins, stops, strides = (list(column) for column in zip(*forward, strict=True))
    return bb.normalize(relax.op.strided_slice(x, axes, begins, stops, strides))


class TopK(OnnxOpConverter):
    """The largest or smallest entries along an axis and where they are, always in order."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return _best(inputs[0], attr["k"], attr)

    @classmethod
    def _impl_v10(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        count = integers(inputs[1], "the number of entries")
        if not count:
            raise ValueError("the number of entries is missing")
        return _best(inputs[0], count[0], attr)


def _best(x: relax.Expr, count: int, attr: Any) -> relax.Expr:
    shape, axis = list(static_shape(x)), attr.get("axis", -1)
    if not 0 <= count <= shape[axis]:
        raise ValueError(f"{count} entries are asked for of {shape[axis]}")
    if not count:
        # TVM takes none for all.
        shape[axis] = 0
        return relax.Tuple([zeros(shape, dtype_of(x)), zeros(shape, "int64")])
    largest = bool(attr.get("largest", 1))
    return relax.op.topk(x, count, axis, ret_type="both", largest=largest, dtype="int64")


class Split(onnx_frontend.Split):
    """Parts of a tensor along one axis; TVM's operator, which knows no part without entries."""

    @classmethod
    def _impl_v13(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        sizes = integers(inputs[1], "sizes of the parts") if inputs[1] is not None else None
        if not sizes or all(sizes):
            return super()._impl_v13(bb, inputs, attr, params)
        x, axis = inputs[0], attr.get("axis", 0)
        ends = np.cumsum(sizes)
        return relax.Tuple(
            [
                bb.emit(_slice(bb, x, [int(end) - size], [int(end)], [axis], None))
                for size, end in zip(sizes, ends, strict=True)
            ]
        )


class Pad(OnnxOpConverter):
    """Padding (or cropping, where a pad is negative) by a constant or by the tensor itself."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        value = attr.get("value", 0.0)
        mode = attr.get("mode", b"constant").decode()
        return _pad(bb, inputs[0], list(attr["pads"]), None, mode, value)

    @classmethod
    def _impl_v11(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        pads = integers(inputs[1], "pads") or []
        axes = integers(inputs[3], "axes")
        mode = attr.get("mode", b"constant").decode()
        known = as_numpy(inputs[2])
        if inputs[2] is None or mode != "constant":
            return _pad(bb, inputs[0], pads, axes, mode, 0.0)
        if known is not None:
            value = known.reshape(-1)[0].item() if known.size else 0.0
            return _pad(bb, inputs[0], pads, axes, mode, value)
        padded = bb.emit(_pad(bb, inputs[0], pads, axes, mode, 0.0))
        inner = relax.const(np.ones(static_shape(inputs[0]), bool))
        inside = bb.emit(_pad(bb, inner, pads, axes, mode, 0.0))
        return relax.op.where(inside, padded, relax.op.reshape(inputs[2], ()))


def _pad(
    bb: relax.BlockBuilder,
    x: relax.Expr,
    pads: Sequence[int],
    axes: Sequence[int] | None,
    mode: str,
    value: float,
) -> relax.Expr:
    shape = static_shape(x)
    axes = [axis % len(shape) for axis in (range(len(shape)) if axes is None else axes)]
    before, after = [0] * len(shape), [0] * len(shape)
    for position, axis in enumerate(axes):
        before[axis], after[axis] = pads[position], pads[position + len(axes)]
    cropped = [
        (axis, max(-low, 0), shape[axis] - max(-high, 0))
        for axis, (low, high) in enumerate(zip(before, after, strict=True))
        if low < 0 or high < 0
    ]
    if cropped:
        crop_axes, begins, ends = (list(column) for column in zip(*cropped, strict=True))
        x = bb.normalize(relax.op.strided_slice(x, crop_axes, begins, ends))
        shape = static_shape(x)
    before, after = [max(low, 0) for low in before], [max(high, 0) for high in after]
    if not any(before) and not any(after):
        return x
    if mode == "constant":
        widths = [width for pair in zip(before, after, strict=True) for width in pair]
        if dtype_of(x) == "bool":
            # TVM pads numbers only.
            padded = relax.op.nn.pad(relax.op.astype(x, "uint8"), widths, "constant", int(value))
            return bb.normalize(relax.op.astype(bb.normalize(padded), "bool"))
        return bb.normalize(relax.op.nn.pad(x, widths, "constant", value))
    numpy_mode = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}.get(mode)
    if numpy_mode is None:
        raise ValueError(f"unknown padding mode {mode!r}")
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        if low or high:
            indices = np.pad(np.arange(shape[axis]), (low, high), mode=numpy_mode)  # type: ignore[call-overload]
            x = take(bb, x, indices, axis)
    return x
