"""Operators that read and write tensors at positions given by other tensors.

Positions may be negative, counting from the end. Those that come from the user at run
time are also clamped: a wrong token id must not read foreign memory.
"""

from __future__ import annotations

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
)


def from_start(bb: relax.BlockBuilder, indices: relax.Expr, extent: int) -> relax.Expr:
    """`indices` into an axis of `extent` entries with negative ones counted from the start."""
    known = as_numpy(indices)
    if known is not None:
        if known.size and (known.min() < -extent or known.max() >= extent):
            raise ValueError(f"an index is out of bounds for an axis of {extent} entries")
        return constant(np.where(known < 0, known + extent, known).astype(known.dtype))
    dtype = dtype_of(indices)
    zero, size = relax.const(0, dtype), relax.const(extent, dtype)
    wrapped = relax.op.where(relax.op.less(indices, zero), relax.op.add(indices, size), indices)
    return bb.normalize(wrapped)


class Gather(OnnxOpConverter):
    """Entries of a tensor along one axis."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        data, indices = inputs[0], inputs[1]
        axis = attr.get("axis", 0)
        extent = static_shape(data)[axis]
        indices = from_start(bb, indices, extent)
        return relax.op.take(data, indices, axis=axis, mode="clip")


class GatherElements(onnx_frontend.GatherElements):
    """One entry for each index, whose tensor is nowhere longer than the data but along the axis."""

    @classmethod
    def _impl_v13(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        _check_fits(inputs[0], inputs[1], attr.get("axis", 0))
        return super()._impl_v13(bb, inputs, attr, params)


class GatherND(onnx_frontend.GatherND):
    """Entries or slices at coordinates."""

    @classmethod
    def _impl_v13(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        shape, indices = static_shape(inputs[0]), static_shape(inputs[1])
        batch = attr.get("batch_dims", 0)
        if not indices or batch + indices[-1] > len(shape) or shape[:batch] != indices[:batch]:
            raise ValueError(
                f"coordinates of {list(indices)} do not fit data of {list(shape)} "
                f"with {batch} batch dimensions"
            )
        return super()._impl_v13(bb, inputs, attr, params)


class ScatterElements(OnnxOpConverter):
    """The data with one entry replaced, or changed, for each index."""

    @classmethod
    def _impl_v11(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        data, indices, updates = inputs[0], inputs[1], inputs[2]
        shape, given = static_shape(data), static_shape(indices)
        axis = attr.get("axis", 0) % len(shape)
        _check_fits(data, indices, axis)
        if given != static_shape(updates):
            raise ValueError("the updates have another shape than the indices")
        names = {"none": "update", "add": "add", "mul": "mul", "min": "min", "max": "max"}
        reduction = names.get(attr.get("reduction", b"none").decode())
        if reduction is None:
            raise ValueError(f"unknown reduction {attr['reduction'].decode()!r}")
        indices = from_start(bb, indices, shape[axis])
        if all(m == n for i, (m, n) in enumerate(zip(given, shape, strict=True)) if i != axis):
            return relax.op.scatter_elements(data, indices, updates, axis, reduction)
        # TVM's operator misplaces what covers a part of the other axes: all coordinates are told.
        columns = [
            bb.emit(relax.op.astype(indices, "int64"))
            if i == axis
            else constant(np.broadcast_to(np.indices(given)[i], given).astype(np.int64))
            for i in range(len(shape))
        ]
        spread = [bb.emit(relax.op.expand_dims(column, -1)) for column in columns]
        coordinates = bb.emit(relax.op.concat(spread, axis=-1))
        return relax.op.scatter_nd(data, coordinates, updates, reduction)


class Scatter(ScatterElements):
    """What ScatterElements was called before version 11."""

    @classmethod
    def _impl_v9(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return cls._impl_v11(bb, inputs, attr, params)


class ScatterND(onnx_frontend.ScatterND):
    """The data with entries or slices at coordinates replaced or changed."""

    @staticmethod
    def _normalize_indices(bb: Any, data: relax.Expr, indices: relax.Expr) -> relax.Expr:
        shape, places = static_shape(data), static_shape(indices)
        if not places or places[-1] > len(shape):
            raise ValueError(f"coordinates of {list(places)} do not fit data of {list(shape)}")
        return onnx_frontend.ScatterND._normalize_indices(bb, data, indices)

    @classmethod
    def _impl_v11(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        cls._check(inputs)
        return super()._impl_v11(bb, inputs, attr, params)

    @classmethod
    def _impl_v16(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        cls._check(inputs)
        return super()._impl_v16(bb, inputs, attr, params)

    @classmethod
    def _impl_v18(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        cls._check(inputs)
        return super()._impl_v18(bb, inputs, attr, params)

    @staticmethod
    def _check(inputs: Any) -> None:
        shape, indices, updates = (static_shape(x) for x in inputs)
        if indices and updates != indices[:-1] + shape[indices[-1] :]:
            raise ValueError(
                f"updates of {list(updates)} do not fit coordinates of {list(indices)} and data "
                f"of {list(shape)}"
            )


def _check_fits(data: relax.Expr, indices: relax.Expr, axis: int) -> None:
    """ValueError unless `indices` is nowhere longer than `data`, but along `axis`."""
    shape, given = static_shape(data), static_shape(indices)
    others = [i for i in range(len(shape)) if i != axis % len(shape)]
    if len(shape) != len(given) or any(given[i] > shape[i] for i in others):
        raise ValueError(f"indices of {list(given)} do not fit data of {list(shape)}")
