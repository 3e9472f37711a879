"""Running sums and products along an axis that may be known at run time only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters.constants import as_numpy, dtype_of, static_shape
from tinsmith.compiler.frontends.onnx.converters.selection import take


class CumSum(OnnxOpConverter):
    """Sums of all entries up to each one, with or without itself, from either end.

    For an axis that an input tells, the sums along every axis are computed, and the one wanted is
    chosen.
    """

    running = staticmethod(relax.op.cumsum)

    @classmethod
    def _impl_v11(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, axis = inputs[0], inputs[1]
        rank = len(static_shape(x))
        if not rank:
            raise ValueError("a tensor without axes has no running sum")
        known = as_numpy(axis)
        if known is not None:
            wanted = int(known.reshape(-1)[0])
            if not -rank <= wanted < rank:
                raise ValueError(f"axis {wanted} of a tensor of {rank} dimensions")
            return _run(bb, cls.running, x, wanted % rank, attr)
        axis = bb.emit(relax.op.reshape(axis, ()))
        dtype = dtype_of(axis)
        negative = relax.op.less(axis, relax.const(0, dtype))
        counted = relax.op.add(axis, relax.const(rank, dtype))
        axis = bb.emit(relax.op.where(negative, counted, axis))
        result = _run(bb, cls.running, x, rank - 1, attr)
        for candidate in range(rank - 2, -1, -1):
            chosen = bb.emit(relax.op.equal(axis, relax.const(candidate, dtype)))
            sums = _run(bb, cls.running, x, candidate, attr)
            result = bb.emit(relax.op.where(chosen, sums, result))
        return result


class CumProd(CumSum):
    """Products of all entries up to each one."""

    running = staticmethod(relax.op.cumprod)

    @classmethod
    def _impl_v26(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return cls._impl_v11(bb, inputs, attr, params)


def _run(
    bb: relax.BlockBuilder, running: Callable[..., relax.Expr], x: relax.Expr, axis: int, attr: Any
) -> relax.Expr:
    extent = static_shape(x)[axis]
    backwards = np.arange(extent)[::-1].copy()
    if attr.get("reverse", 0):
        x = bb.emit(take(bb, x, backwards, axis))
    results = running(x, axis, dtype_of(x), exclusive=bool(attr.get("exclusive", 0)))
    results = bb.emit(results)
    return bb.emit(take(bb, results, backwards, axis)) if attr.get("reverse", 0) else results
