"""Reductions that TVM's converters get wrong for infinities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from compiler.frontends.onnx_converters.constants import as_numpy, dtype_of


class ReduceLogSumExp(OnnxOpConverter):
    """log(sum(e^x)), the largest element of a row taken out of the sum if it is finite."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return cls._reduced(bb, inputs[0], attr.get("axes"), attr)

    @classmethod
    def _impl_v18(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        axes: Sequence[int] | None = None
        if len(inputs) > 1 and inputs[1] is not None:
            known = as_numpy(inputs[1])
            if known is None:
                raise ValueError("axes that are computed at run time are not supported")
            axes = [int(axis) for axis in known]
        if not axes and attr.get("noop_with_empty_axes", 0):
            return inputs[0]
        return cls._reduced(bb, inputs[0], axes, attr)

    @staticmethod
    def _reduced(bb: Any, x: relax.Expr, axes: Sequence[int] | None, attr: Any) -> relax.Expr:
        axes = list(axes) if axes else None
        largest = bb.emit(relax.op.max(x, axes, keepdims=True))
        zero = relax.const(0.0, dtype_of(x))
        # An infinity minus itself is NaN.
        taken = bb.emit(relax.op.where(relax.op.isinf(largest), zero, largest))
        total = relax.op.sum(relax.op.exp(relax.op.subtract(x, taken)), axes, keepdims=True)
        result = relax.op.add(relax.op.log(total), taken)
        return result if attr.get("keepdims", 1) else relax.op.squeeze(bb.emit(result), axes)
