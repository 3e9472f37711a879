"""Products of dequantised operands as products of integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from passes.graph.rewriter import BlockRewriter
from passes.graph.tensors import constant, constant_array, integers, operator_name, static_shape
from passes.quantize.integer_averages import integer_average
from passes.quantize.operators import Parameters, parameters_of
from targets.number_formats import NumberFormats

_AVERAGES = ("relax.mean", "relax.nn.avg_pool2d", "relax.nn.adaptive_avg_pool2d")


@tvm.transform.module_pass(opt_level=0, name="LowerIntegers")
class LowerIntegers:
    """Compute convolutions and matrix products of quantised operands in integers.

    Before::

        x = dequantize(xq: (1, 8, 8, 3) uint8, sx, zx)
        w = dequantize(const wq: (3, 3, 3, 16) int8, sw: (16,), 0, axis=3)
        y: (1, 8, 8, 16) = conv2d(x, w, padding=1)

    After::

        p: (1, 10, 10, 3) uint8 = pad(xq, zx)
        a: (1, 8, 8, 16) int32 = conv2d(p, const wq, out_dtype="int32")
        b: int32 = subtract(a, const zx * sum(wq): (1, 1, 1, 16) int32)
        y: (1, 8, 8, 16) = multiply(astype(b, "float32"), const sx * sw)

    The sum over (x - zx) * w is taken apart, so that the kernel multiplies the
    stored integers; with a zero point of 0 nothing is subtracted and padding
    stays with the convolution. Bias, activation and residual remain float
    operators behind it, which fusion takes into the kernel's epilogue. Every
    reader of a `dequantize` gets one of its own, for the same reason.

    Means and average pools become sums of integers, scaled (`integer_averages`).

    Left alone: operands of other dtypes than the target's kernels take, weights
    with a zero point, scales along another axis than the output channels, and
    products of two computed operands. Those compute in float.

    Must run before constants are folded: folding makes weights float again.
    """

    def __init__(self, table: NumberFormats) -> None:
        self.table = table

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return _Lowerer(module, self.table).run()


class _Lowerer(BlockRewriter):
    def __init__(self, module: tvm.IRModule, table: NumberFormats) -> None:
        super().__init__(module)
        self._table = table

    def visit(self, variable: relax.Var, value: relax.Expr) -> relax.Expr:
        new = super().visit(variable, value)
        if isinstance(variable, relax.DataflowVar):
            call = self.definition(new)
            if operator_name(call) == "relax.dequantize":
                self._copies.setdefault(variable, call)
        return new

    def begin(self, bindings: list[relax.Binding]) -> None:
        self._copies: dict[relax.Var, relax.Call] = {}

    def operand(self, variable: relax.Var) -> relax.Expr:
        call = self._copies.get(variable)
        return super().operand(variable) if call is None else self.emit(call)

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        name = operator_name(value)
        if name in _AVERAGES:
            source = self._dequantized(value.args[0])
            found = None if source is None else integer_average(self, value, *source)
            return value if found is None else found
        form = self._table.integer_operators.get(str(name))
        if form is None:
            return value
        call: Any = value
        data = self._dequantized(call.args[0])
        weights = self._dequantized(call.args[1])
        if data is None or weights is None:
            return value
        (stored, meaning), (codes, weight_meaning) = data, weights
        array = constant_array(codes)
        if array is None or not meaning.per_tensor or np.any(weight_meaning.zero_point):
            return value
        if (meaning.dtype, weight_meaning.dtype) != (form.activation, form.weight):
            return value
        last = array.ndim - 1
        if not weight_meaning.per_tensor and weight_meaning.axis != last:
            return value
        if name == "relax.nn.conv2d":
            if str(call.attrs.kernel_layout) != "HWIO":
                return value
            product = self._convolution(call, stored, meaning, codes, form.accumulator)
        else:
            if array.ndim != 2 or len(static_shape(call) or ()) < 2:
                return value
            product = relax.op.matmul(stored, codes, out_dtype=form.accumulator)
        # The product keeps the operator's name: what follows may be folded away, and reports
        # tell kernels to operators by it.
        result = self.emit(product, variable.name)
        # Output channels are the last axis of the result, whatever its rank.
        shape = (1,) * (len(static_shape(call) or ()) - 1) + (array.shape[-1],)
        if meaning.zero_point:
            sums = array.astype(np.int64).sum(tuple(range(last))) * int(meaning.zero_point)
            correction = constant(sums.astype(form.accumulator).reshape(shape))
            result = self.emit(relax.op.subtract(result, correction))
        scale = np.float32(meaning.scale) * np.asarray(weight_meaning.scale, np.float32)
        factor = constant(np.broadcast_to(scale, shape[-1:]).reshape(shape))
        return relax.op.multiply(self.emit(relax.op.astype(result, "float32")), factor)

    def _dequantized(self, expr: relax.Expr) -> tuple[relax.Expr, Parameters] | None:
        call = self.definition(expr)
        if operator_name(call) != "relax.dequantize":
            return None
        parameters = parameters_of(call)
        return None if parameters is None else (call.args[0], parameters)

    def _convolution(
        self,
        call: Any,
        stored: relax.Expr,
        meaning: Parameters,
        weights: relax.Expr,
        accumulator: str,
    ) -> relax.Expr:
        """The convolution of integers; outside the image they are the zero point."""
        attrs = call.attrs
        padding = list(integers(attrs.padding))
        if meaning.zero_point and any(padding):
            top, left, bottom, right = padding
            spatial = [(top, bottom), (left, right)]
            around = {"NHWC": [(0, 0), *spatial, (0, 0)], "NCHW": [(0, 0), (0, 0), *spatial]}
            width = [extent for pair in around[str(attrs.data_layout)] for extent in pair]
            stored = self.emit(
                relax.op.nn.pad(stored, width, "constant", float(meaning.zero_point))
            )
            padding = [0, 0, 0, 0]
        return relax.op.nn.conv2d(
            stored,
            weights,
            strides=list(attrs.strides),
            padding=padding,
            dilation=list(attrs.dilation),
            groups=attrs.groups,
            data_layout=attrs.data_layout,
            kernel_layout=attrs.kernel_layout,
            out_layout=attrs.out_layout,
            out_dtype=accumulator,
        )
