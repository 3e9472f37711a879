"""Reductions that TVM's converters get wrong: infinities, dtypes, and no axes at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter, onnx_input

from tinsmith.compiler.frontends.onnx.converters.constants import as_numpy, dtype_of


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
        axes, dtype = list(axes) if axes else None, dtype_of(x)
        if not dtype.startswith(("float", "bfloat")):
            wide = bb.emit(relax.op.astype(x, "float64"))
            result = ReduceLogSumExp._reduced(bb, wide, axes, attr)
            return relax.op.astype(bb.emit(result), dtype)
        largest = bb.emit(relax.op.max(x, axes, keepdims=True))
        zero = relax.const(0.0, dtype_of(x))
        # An infinity minus itself is NaN.
        taken = bb.emit(relax.op.where(relax.op.isinf(largest), zero, largest))
        total = relax.op.sum(relax.op.exp(relax.op.subtract(x, taken)), axes, keepdims=True)
        result = relax.op.add(relax.op.log(total), taken)
        return result if attr.get("keepdims", 1) else relax.op.squeeze(bb.emit(result), axes)


def _absolute(x: relax.Expr) -> relax.Expr:
    return relax.op.abs(x)


def _square(x: relax.Expr) -> relax.Expr:
    return relax.op.multiply(x, x)


class _Reduction(OnnxOpConverter):
    """TVM's reduction, of dtypes that it does not reduce in another one.

    Without axes where none means none at all, what is done to single elements is done still.
    """

    # What an operator does to a row of one element, if anything.
    single: Callable[[relax.Expr], relax.Expr] | None = None
    # The kinds of dtypes, as numpy names them, that are converted, and what to.
    kinds = ""
    through = "float64"

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return cls._converted(bb, inputs, attr, params, 11)

    @classmethod
    def _impl_v18(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        axes = as_numpy(inputs[1])
        nowhere = inputs[1] is None or (axes is not None and not axes.size)
        if nowhere and attr.get("noop_with_empty_axes", 0):
            return inputs[0] if cls.single is None else cls.single(inputs[0])
        return cls._converted(bb, inputs, attr, params, 18)

    @classmethod
    def _converted(cls, bb: Any, inputs: Any, attr: Any, params: Any, opset: int) -> relax.Expr:
        x, dtype = inputs[0], dtype_of(inputs[0])
        if not dtype.startswith("bfloat") and np.dtype(dtype).kind in cls.kinds:
            x = bb.emit(relax.op.astype(x, cls.through))
        convert = getattr(onnx_frontend, cls.__name__).get_converter(opset)
        result = bb.emit(convert(bb, onnx_input([x, *inputs[1:]]), attr, params))
        return result if dtype_of(result) == dtype else relax.op.astype(result, dtype)


class ReduceMax(_Reduction):
    """Maxima; of truth values, whether any holds."""

    kinds, through = "b", "uint8"


class ReduceMin(_Reduction):
    """Minima; of truth values, whether all hold."""

    kinds, through = "b", "uint8"


class ReduceMean(_Reduction):
    """Means, in the dtype of the elements: of integers, without their fractions."""

    kinds = "iu"


class ReduceL1(_Reduction):
    """Sums of absolute values."""

    single = staticmethod(_absolute)


class ReduceL2(_Reduction):
    """Roots of sums of squares."""

    single, kinds = staticmethod(_absolute), "iu"


class ReduceLogSum(_Reduction):
    """Logarithms of sums."""

    single, kinds = staticmethod(relax.op.log), "iu"


class ReduceSumSquare(_Reduction):
    """Sums of squares."""

    single = staticmethod(_square)
