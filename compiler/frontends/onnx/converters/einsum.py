"""Sums of products as an equation of labels tells: `bij,bjk->bik`."""

from __future__ import annotations

from typing import Any

from tvm import relax, topi
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter


class Einsum(OnnxOpConverter):
    """TVM's, which does not ask whether the labels of the result occur, and crashes."""

    @classmethod
    def _impl_v12(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        equation = attr["equation"].decode(errors="replace").replace(" ", "")
        check_equation(equation, [value.ty.ndim for value in inputs])
        return bb.emit_te(topi.einsum, equation, *inputs)


def check_equation(equation: str, ranks: list[int]) -> None:
    """Raise ValueError unless operands of these ranks can be summed as `equation` says."""
    left, _, result = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise ValueError(
            f"the equation {equation[:80]!r} has {len(terms)} operands, the node {len(ranks)}"
        )
    for term, rank in zip(terms, ranks, strict=True):
        labels = len(term.replace("...", ""))
        if labels > rank or (labels < rank and "..." not in term):
            raise ValueError(f"the operand {term[:80]!r} of the equation has {rank} axes")
    axes = result.replace("...", "")
    unknown = set(result) - set(left)
    if unknown:
        raise ValueError(f"no operand has the axis {min(unknown)!r} of the result")
    if len(set(axes)) < len(axes):
        raise ValueError(f"the result {result[:80]!r} of the equation has an axis twice")
