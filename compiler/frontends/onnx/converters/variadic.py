"""Elementwise operators over any number of tensors, broadcast against each other."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, ClassVar

from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters.constants import dtype_of

Combine = Callable[[relax.Expr, relax.Expr], relax.Expr]


class _Variadic(OnnxOpConverter):
    """Combines the inputs two by two; TVM's converters do not broadcast all of them."""

    combine: ClassVar[Combine]

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return reduce(lambda x, y: bb.normalize(cls.combine(x, y)), inputs)


class Max(_Variadic):
    """Largest value at each position."""

    combine = staticmethod(relax.op.maximum)


class Min(_Variadic):
    """Smallest value at each position."""

    combine = staticmethod(relax.op.minimum)


class Sum(_Variadic):
    """Sum at each position."""

    combine = staticmethod(relax.op.add)


class Mean(_Variadic):
    """Mean at each position."""

    combine = staticmethod(relax.op.add)

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        total = super()._impl_v1(bb, inputs, attr, params)
        return relax.op.divide(total, relax.const(len(inputs), dtype_of(inputs[0])))
