"""QuantizeLinear and DequantizeLinear, and what the codes of all quantised operators mean.

The canonical form of a tensor stored in integers is `relax.dequantize` of its codes and
`relax.quantize` of its values. Scales may be known now, which is what the integer passes
want, or at run time; they hold for the tensor, for an index of one axis, or for a block
of neighbours along an axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters.constants import (
    NARROW_INTEGERS,
    as_numpy,
    constant,
    dtype_of,
    reshape,
    static_shape,
)

_CODES = frozenset({"int8", "uint8", "int16", "uint16", "int32", *NARROW_INTEGERS})


@dataclass(frozen=True)
class Scaling:
    """What codes of `dtype` mean: `(code - zero_point) * scale`.

    `scale` is a float tensor of rank 0, or of rank 1 along `axis`; with `block`, of the tensor's
    rank, each element for `block` neighbours along `axis`. `zero_point` has its shape. Codes of
    fewer than 8 bits are stored as `NARROW_INTEGERS` tells.
    """

    scale: relax.Expr
    zero_point: relax.Expr
    dtype: str
    axis: int = 0
    block: int = 0

    def dequantized(self, bb: relax.BlockBuilder, codes: relax.Expr) -> relax.Expr:
        """The values of `codes`, in the scale's dtype."""
        dtype = dtype_of(self.scale)
        if not self.block and self._is_positive():
            return bb.emit(
                relax.op.dequantize(codes, self.scale, self.zero_point, self.axis, dtype)
            )
        scale, zero_point = self._elementwise(bb, static_shape(codes))
        distance = relax.op.subtract(
            relax.op.astype(codes, "int32"), relax.op.astype(zero_point, "int32")
        )
        return bb.emit(relax.op.multiply(relax.op.astype(distance, dtype), scale))

    def quantized(self, bb: relax.BlockBuilder, values: relax.Expr) -> relax.Expr:
        """The codes of `values`."""
        stored = NARROW_INTEGERS.get(self.dtype, self.dtype)
        positive = self._is_positive()
        scalar = not static_shape(self.scale)
        if stored == self.dtype and scalar and positive and _is_parameter(bb, values):
            # The standard divides; the reciprocal that kernels multiply with gives some values
            # the next code. Here it costs nothing, and nothing else can undo it later.
            whole = bb.emit(relax.op.divide(values, self.scale))
            one = relax.const(1.0, dtype_of(self.scale))
            return bb.emit(relax.op.quantize(whole, one, self.zero_point, self.axis, stored))
        if self.block or not positive:
            scale, zero_point = self._elementwise(bb, static_shape(values))
            rounded = relax.op.round(relax.op.divide(values, scale))
            codes = bb.emit(relax.op.add(rounded, relax.op.astype(zero_point, dtype_of(scale))))
        else:
            codes = bb.emit(
                relax.op.quantize(values, self.scale, self.zero_point, self.axis, stored)
            )
            if stored == self.dtype:
                return codes
        limits = ml_dtypes.iinfo(self.dtype)
        limited = relax.op.clip(codes, float(limits.min), float(limits.max))
        return bb.emit(relax.op.astype(limited, stored))

    def _is_positive(self) -> bool:
        """Whether larger codes mean larger values, which the integer passes take for granted.

        A scale that is negative or zero is legal and odd: it is multiplied with, nothing more.
        """
        known = as_numpy(self.scale)
        return known is None or bool((known > 0).all())

    def _elementwise(self, bb: relax.BlockBuilder, shape: tuple[int, ...]) -> list[relax.Expr]:
        """Scale and zero point in a shape that broadcasts to the tensor's `shape`."""
        if not self.block:
            column = [1] * len(shape)
            if static_shape(self.scale):
                column[self.axis] = shape[self.axis]
            return [reshape(bb, each, column) for each in (self.scale, self.zero_point)]
        size = shape[self.axis]
        spread = []
        for blocked in (self.scale, self.zero_point):
            array = as_numpy(blocked)
            if array is not None:
                repeated = array.repeat(self.block, self.axis).take(range(size), self.axis)
                spread.append(constant(repeated))
                continue
            repeated = bb.emit(relax.op.repeat(blocked, self.block, self.axis))
            spread.append(bb.emit(relax.op.strided_slice(repeated, [self.axis], [0], [size])))
        return spread


def scaling(
    bb: relax.BlockBuilder,
    shape: tuple[int, ...],
    scale: relax.Expr | None,
    zero_point: relax.Expr | None,
    dtype: str,
    *,
    axis: int = 0,
    block: int = 0,
    what: str = "the tensor",
) -> Scaling:
    """Scale and zero point of codes of `dtype` and `shape`, checked as far as they are known.

    A scale of one element holds for the whole tensor, whatever its rank. Raises ValueError
    saying what is wrong of `what`.
    """
    if dtype not in _CODES:
        raise ValueError(f"{what}: codes of {dtype} are not supported")
    if scale is None:
        raise ValueError(f"{what} has no scale")
    rank = len(shape)
    if block < 0:
        raise ValueError(f"{what}: the block size {block} is negative")
    known = as_numpy(scale)
    if known is not None and not np.isfinite(known).all():
        bad = known[~np.isfinite(known)].reshape(-1)[0]
        raise ValueError(f"{what}: a scale must be finite, not {bad:g}")
    extents = static_shape(scale)
    count = int(np.prod(extents))
    if rank and not -rank <= axis < rank and count != 1:
        raise ValueError(f"{what} has {rank} dimensions, but the scale lies along axis {axis}")
    axis = axis % rank if rank else 0
    if block and count != 1:
        expected = tuple(-(-n // block) if a == axis else n for a, n in enumerate(shape))
        if extents != expected:
            raise ValueError(
                f"{what}: blocks of {block} along axis {axis} of {list(shape)} need a scale of "
                f"{list(expected)}, not {list(extents)}"
            )
    elif count == 1:
        scale, block, extents = reshape(bb, scale, ()), 0, ()
    else:
        if count != max(extents) or not rank or count != shape[axis]:
            raise ValueError(
                f"{what} has the shape {list(shape)}, to which a scale of {list(extents)} along "
                f"axis {axis} does not fit"
            )
        scale, extents = reshape(bb, scale, (count,)), (count,)
    return Scaling(scale, _zero_point(bb, zero_point, dtype, extents, what), dtype, axis, block)


def _zero_point(
    bb: relax.BlockBuilder,
    zero_point: relax.Expr | None,
    dtype: str,
    shape: tuple[int, ...],
    what: str,
) -> relax.Expr:
    """The zero point in the shape of its scale; zeros if there is none."""
    stored = NARROW_INTEGERS.get(dtype, dtype)
    if zero_point is None:
        return constant(np.zeros(shape, stored))
    if dtype_of(zero_point) != stored:
        raise ValueError(
            f"{what}: the zero point is of {dtype_of(zero_point)}, its codes of {dtype}"
        )
    given = static_shape(zero_point)
    if given == shape:
        return zero_point
    if int(np.prod(given)) == int(np.prod(shape)):
        return reshape(bb, zero_point, shape)
    array = as_numpy(zero_point)
    if array is not None and array.size == 1:
        return constant(np.broadcast_to(array.reshape(()), shape))
    raise ValueError(f"{what}: the zero point has the shape {list(given)}, its scale {list(shape)}")


def _is_parameter(bb: relax.BlockBuilder, values: relax.Expr) -> bool:
    """Whether `values` is an input of the graph, which no earlier operator has computed."""
    return isinstance(values, relax.Var) and bb.lookup_binding(values) is None


def codes_dtype(expr: relax.Expr | None, attr: Any, position: int) -> str:
    """The dtype that the model gives the input at `position`; `uint8` where it is left out."""
    if expr is None:
        return "uint8"
    dtypes = attr["tvm_custom"]["dtypes"]
    narrow = dtypes[position] if position < len(dtypes) else None
    return narrow or dtype_of(expr)


class QuantizeLinear(OnnxOpConverter):
    """Values to codes, rounded to the nearest, halves to even."""

    @classmethod
    def _impl_v10(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        values, scale, zero_point = inputs[0], inputs[1], inputs[2]
        dtype = codes_dtype(zero_point, attr, 2)
        wanted = attr.get("output_dtype", 0)
        if wanted:
            declared = str(onnx.helper.tensor_dtype_to_np_dtype(wanted))
            if zero_point is not None and declared != dtype:
                raise ValueError(f"output_dtype is {declared}, the zero point is of {dtype}")
            dtype = declared
        shape = static_shape(values)
        block = attr.get("block_size", 0)
        meaning = scaling(
            bb, shape, scale, zero_point, dtype, axis=attr.get("axis", _axis(shape)), block=block
        )
        if dtype in NARROW_INTEGERS:
            attr["tvm_custom"]["results"].append(dtype)
        return meaning.quantized(bb, _like(bb, values, meaning.scale))


class DequantizeLinear(OnnxOpConverter):
    """Codes to values, in the dtype of the scale."""

    @classmethod
    def _impl_v10(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        codes, scale, zero_point = inputs[0], inputs[1], inputs[2]
        dtype, shape = codes_dtype(codes, attr, 0), static_shape(codes)
        axis, block = attr.get("axis", _axis(shape)), attr.get("block_size", 0)
        if dtype.startswith("float"):
            return cls._scaled(bb, codes, scale, dtype)
        meaning = scaling(bb, shape, scale, zero_point, dtype, axis=axis, block=block)
        values = meaning.dequantized(bb, codes)
        wanted = attr.get("output_dtype", 0)
        if wanted:
            values = relax.op.astype(values, str(onnx.helper.tensor_dtype_to_np_dtype(wanted)))
        return values

    @classmethod
    def _scaled(
        cls, bb: relax.BlockBuilder, values: relax.Expr, scale: relax.Expr, dtype: str
    ) -> relax.Expr:
        """Floats of 8 bits, which were widened when they were read."""
        if int(np.prod(static_shape(scale))) != 1:
            raise ValueError(f"{dtype} with a scale for each channel or block is not supported")
        return relax.op.multiply(_like(bb, values, scale), reshape(bb, scale, ()))


def _axis(shape: tuple[int, ...]) -> int:
    """The default axis: the second, which vectors have not."""
    return 1 if len(shape) > 1 else 0


def _like(bb: relax.BlockBuilder, values: relax.Expr, scale: relax.Expr) -> relax.Expr:
    """`values` in the dtype of `scale`."""
    if dtype_of(values) == dtype_of(scale):
        return values
    return bb.emit(relax.op.astype(values, dtype_of(scale)))
