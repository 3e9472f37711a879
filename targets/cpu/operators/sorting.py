"""Sorting, and sums and products that run along an axis: TVM defines them, but names no lowering.

Running sums and products are plain loops; sorting is a call that a module's own runtime takes over
(`tinsmith.compiler.module.write.sort_kernels`).
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import te, topi
from tvm.ir import Expr
from tvm.relax import BlockBuilder, Call


def sorting_legalizers() -> dict[str, Callable[[BlockBuilder, Call], Expr]]:
    """Legalisers by operator name."""
    return {
        "relax.cumsum": lambda bb, call: _scan(bb, call, topi.cumsum),
        "relax.cumprod": lambda bb, call: _scan(bb, call, topi.cumprod),
        "relax.sort": _sort,
        "relax.argsort": _argsort,
        "relax.topk": _topk,
    }


def _scan(bb: BlockBuilder, call: Call, define: Callable[..., te.Tensor]) -> Expr:
    attrs = call.attrs
    axis = None if attrs.axis is None else int(attrs.axis)
    return bb.call_te(define, call.args[0], axis, str(call.ty.dtype), bool(attrs.exclusive))


def _sort(bb: BlockBuilder, call: Call) -> Expr:
    return bb.call_te(topi.sort, call.args[0], int(call.attrs.axis), not call.attrs.descending)


def _argsort(bb: BlockBuilder, call: Call) -> Expr:
    attrs = call.attrs
    return bb.call_te(
        topi.argsort,
        call.args[0],
        axis=int(attrs.axis),
        is_ascend=not attrs.descending,
        dtype=str(attrs.dtype),
    )


def _topk(bb: BlockBuilder, call: Call) -> Expr:
    attrs = call.attrs
    return bb.call_te(
        topi.topk,
        call.args[0],
        k=int(attrs.k),
        axis=int(attrs.axis),
        ret_type=str(attrs.ret_type),
        is_ascend=not attrs.largest,
        dtype=str(attrs.dtype),
    )
