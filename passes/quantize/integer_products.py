"""Convolutions and matrix products of codes, and the sums that zero points need.

With codes x and w of zero points zx and zw, over K terms:

    sum (x - zx)(w - zw) = sum x w - zx (sum w - K zw) - zw sum x
                           product     column_sums        row_sums
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from tvm import relax

from tinsmith.passes.graph.tensors import constant, constant_array, integers, static_shape
from tinsmith.passes.quantize.integer_operands import Emit, IntegerOperand


class IntegerProduct(ABC):
    """One product, of operands whose codes have the dtypes of a kernel.

    `subtracts_zero_point`: whether `product` has the zero point of the data subtracted.
    """

    subtracts_zero_point = False

    def __init__(
        self, call: Any, data: IntegerOperand, weights: IntegerOperand, emit: Emit
    ) -> None:
        self._call, self._data, self._weights, self._emit = call, data, weights, emit

    @abstractmethod
    def product(self, accumulator: str) -> relax.Expr:
        """The product of the codes, in the dtype `accumulator`."""

    @abstractmethod
    def column_sums(self) -> np.ndarray | relax.Expr:
        """Sums of the weights' integers, int32, broadcast against the product."""

    @abstractmethod
    def row_sums(self) -> relax.Expr:
        """Sums of the data's codes, int32, broadcast against the product."""


class MatrixProduct(IntegerProduct):
    """`[..., M, K] @ [..., K, N]`

    Of two computed operands the kernel subtracts the zero point of the left one itself.
    """

    def __init__(
        self, call: Any, data: IntegerOperand, weights: IntegerOperand, emit: Emit
    ) -> None:
        super().__init__(call, data, weights, emit)
        self._left = data.codes
        offset = data.zero_point
        computed = weights.known is None and weights.zero_point is None
        if computed and isinstance(offset, np.ndarray) and offset.size == 1:
            wide = emit(relax.op.astype(data.codes, "int16"))
            shift = constant(offset.astype("int16").reshape(()))
            self._left = emit(relax.op.subtract(wide, shift))
            self.subtracts_zero_point = True

    def product(self, accumulator: str) -> relax.Expr:
        return relax.op.matmul(self._left, self._weights.codes, out_dtype=accumulator)

    def column_sums(self) -> np.ndarray | relax.Expr:
        known = self._weights.known
        if known is not None:
            return np.asarray(known.sum(-2, dtype=np.int32, keepdims=True))
        sums = _sum_of_codes(self._weights.codes, -2, self._emit)
        offset = self._weights.zero_point
        if offset is None:
            return sums
        terms = (static_shape(self._weights.codes) or ())[-2]
        if isinstance(offset, np.ndarray):
            return self._emit(
                relax.op.subtract(sums, constant(np.asarray(offset * terms, np.int32)))
            )
        offset = self._emit(relax.op.multiply(offset, constant(np.asarray(terms, np.int32))))
        return self._emit(relax.op.subtract(sums, offset))

    def row_sums(self) -> relax.Expr:
        return _sum_of_codes(self._data.codes, -1, self._emit)


class Convolution(IntegerProduct):
    """2-D convolution in any data layout with constant weights in HWIO.

    Codes are padded with their zero point beforehand where that is not zero.
    """

    def __init__(
        self, call: Any, data: IntegerOperand, weights: IntegerOperand, emit: Emit
    ) -> None:
        super().__init__(call, data, weights, emit)
        self._padding = list(integers(call.attrs.padding))
        self._codes = data.codes
        if data.zero_point is not None and any(self._padding):
            self._codes = self._padded(data.zero_point)
            self._padding = [0, 0, 0, 0]

    def product(self, accumulator: str) -> relax.Expr:
        return self._convolution(self._weights.codes, accumulator)

    def column_sums(self) -> np.ndarray:
        return np.asarray(
            np.asarray(self._weights.known).sum((0, 1, 2), dtype=np.int32, keepdims=True)
        )

    def row_sums(self) -> relax.Expr:
        """Sums over the window, by a convolution with ones of one output for each group."""
        codes = np.asarray(constant_array(self._weights.codes))
        groups = int(self._call.attrs.groups)
        ones = constant(np.ones((*codes.shape[:3], groups), codes.dtype))
        sums = self._emit(self._convolution(ones, "int32"))
        each = codes.shape[3] // groups
        return sums if groups == 1 or each == 1 else self._emit(relax.op.repeat(sums, each, 3))

    def _padded(self, zero_point: np.ndarray | relax.Expr) -> relax.Expr:
        top, left, bottom, right = self._padding
        layout = str(self._call.attrs.data_layout)
        image = {"N": (0, 0), "H": (top, bottom), "W": (left, right), "C": (0, 0)}
        widths = [extent for letter in layout for extent in image[letter]]
        if isinstance(zero_point, np.ndarray):
            value = float(zero_point.reshape(()))
            return self._emit(relax.op.nn.pad(self._codes, widths, "constant", value))
        # The operator pads with numbers only: pad with zero and add the zero point there.
        shape = static_shape(self._codes) or ()
        inside = [n if letter in "HW" else 1 for letter, n in zip(layout, shape, strict=True)]
        dtype = str(self._codes.ty.dtype)
        border = np.pad(
            np.zeros(inside, dtype), np.reshape(widths, (-1, 2)).tolist(), constant_values=1
        )
        padded = self._emit(relax.op.nn.pad(self._codes, widths, "constant", 0.0))
        value = self._emit(relax.op.astype(zero_point, dtype))
        fill = self._emit(relax.op.multiply(constant(border), value))
        return self._emit(relax.op.add(padded, fill))

    def _convolution(self, weights: relax.Expr, accumulator: str) -> relax.Expr:
        attrs = self._call.attrs
        return relax.op.nn.conv2d(
            self._codes,
            weights,
            strides=list(attrs.strides),
            padding=self._padding,
            dilation=list(attrs.dilation),
            groups=attrs.groups,
            data_layout=attrs.data_layout,
            kernel_layout=attrs.kernel_layout,
            out_layout=attrs.out_layout,
            out_dtype=accumulator,
        )


def _sum_of_codes(codes: relax.Expr, axis: int, emit: Emit) -> relax.Expr:
    return emit(relax.op.sum(emit(relax.op.astype(codes, "int32")), [axis], keepdims=True))
