"""What computes the operands of an operator, as long as that is not lowered itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.ir import Expr, GenericConst
from tvm.relax import BlockBuilder, Call

_BYTES = ("uint8", "int8")


@dataclass(frozen=True)
class StaticTensor:
    """Static shape and dtype of an expression."""

    shape: tuple[int, ...]
    dtype: str


def static_tensor(expression: Expr) -> StaticTensor | None:
    """The tensor's type if its shape is static."""
    ty = expression.ty
    if not isinstance(ty, relax.TensorType) or not isinstance(ty.shape, relax.ShapeExpr):
        return None
    if not all(isinstance(d, tvm.tirx.IntImm) for d in ty.shape.values):
        return None
    return StaticTensor(tuple(int(d) for d in ty.shape.values), str(ty.dtype))


@dataclass(frozen=True)
class Border:
    """Integers that are padded with a constant before a window slides over them.

    `padding` is that at the top, left, bottom and right of the image `data`.
    """

    data: Expr
    padding: tuple[int, int, int, int]
    value: int


def constant_border(bb: BlockBuilder, data: Expr, layout: str) -> Border | None:
    """What `data` is the padded form of, if a window can pad it on the way."""
    pad = _bound_call(bb, data, "relax.nn.pad")
    source = None if pad is None else static_tensor(pad.args[0])
    if source is None or source.dtype not in _BYTES:
        return None
    widths = [int(width) for width in pad.attrs.pad_width]
    pairs = [(widths[i], widths[i + 1]) for i in range(0, len(widths), 2)]
    height, width = layout.index("H"), layout.index("W")
    others = [pair for axis, pair in enumerate(pairs) if axis not in (height, width)]
    if str(pad.attrs.pad_mode) != "constant" or min(widths) < 0 or any(map(any, others)):
        return None
    (top, bottom), (left, right) = pairs[height], pairs[width]
    return Border(pad.args[0], (top, left, bottom, right), int(pad.attrs.pad_value))


def without_zero_point(bb: BlockBuilder, left: Expr) -> tuple[Expr, int]:
    """Bytes and their zero point if `left` is `subtract(astype(bytes, "int16"), zero point)`.

    Anything else is answered as it is, with a zero point of 0.
    """
    shifted = _bound_call(bb, left, "relax.subtract")
    if shifted is None or not isinstance(shifted.args[1], GenericConst):
        return left, 0
    wide = _bound_call(bb, shifted.args[0], "relax.astype")
    stored = None if wide is None else static_tensor(wide.args[0])
    zero_point = shifted.args[1].value.numpy()
    if stored is None or stored.dtype not in _BYTES or zero_point.size != 1:
        return left, 0
    return wide.args[0], int(zero_point.reshape(()))


def _bound_call(bb: BlockBuilder, expression: Expr, operator: str) -> Any:
    """The call of `operator` that a variable is bound to, None if it is no such call."""
    call = bb.lookup_binding(expression) if isinstance(expression, relax.Var) else None
    found = isinstance(call, Call) and getattr(call.op, "name", None) == operator
    return call if found else None
