"""Operators that read tensors at positions given by other tensors.

Positions may be negative, counting from the end. Those that come from the user at run
time are also clamped: a wrong token id must not read foreign memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from compiler.frontends.onnx_converters.constants import as_numpy, constant, dtype_of, static_shape


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
