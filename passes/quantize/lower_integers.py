"""Products of dequantised operands as products of integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax

from tinsmith.passes.graph.conditions import CHANNELS_LAST, PRODUCTS_OF_NUMBERS
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import constant, element_type, operator_name, static_shape
from tinsmith.passes.quantize.integer_averages import integer_average
from tinsmith.passes.quantize.integer_operands import IntegerOperand, integer_operand, with_dtype
from tinsmith.passes.quantize.integer_products import Convolution, IntegerProduct, MatrixProduct
from tinsmith.passes.quantize.operators import Parameters, parameters_of
from tinsmith.targets.number_formats import IntegerFormat, NumberFormats

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

    Operands whose scale is applied later, or known at run time only, are lowered
    too: `matmul(astype(x, int32) - zx, astype(w, int32) - zw)` becomes a product of
    x and w from which the terms of the zero points are subtracted. Codes of the other
    sign than the kernel's are shifted by 128: weights now, data at run time unless
    `MatchSignedness` has seen to it. Weights that need a zero point even so cost
    a sum over the data at run time.

    A product of two computed operands, `matmul(dequantize(aq, sa, za), dequantize(bq, sb, 0))`
    of uint8 and int8, is `matmul(astype(aq, int16) - za, bq)`: the kernel takes the zero point
    in, because nothing is known of bq before.

    Left alone: scales along another axis than the output channels, and other products of
    two computed operands in float.

    Must run before constants are folded: folding makes weights float again.
    """

    requires = (CHANNELS_LAST, PRODUCTS_OF_NUMBERS)

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
        self._emitted: dict[Any, relax.Expr] = {}

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
        return value if form is None else self._product(value, variable, form)

    def _product(self, call: Any, variable: relax.Var, form: IntegerFormat) -> relax.Expr:
        """The product of two operands of codes; the call itself if that cannot be."""
        data = integer_operand(call.args[0], self.definition, self._shared)
        weights = integer_operand(call.args[1], self.definition, self._shared)
        shape = static_shape(call)
        if data is None or weights is None or shape is None or not _fits(call, data, weights, form):
            return call
        data = with_dtype(data, form.activation, self._shared)
        weights = with_dtype(weights, form.weight, self._shared, by_column=True)
        if data is None or weights is None:
            return call
        product = _PRODUCTS[str(operator_name(call))](call, data, weights, self._shared)
        # The product keeps the operator's name: what follows may be folded away, and reports
        # tell kernels to operators by it.
        result = self.emit(product.product(form.accumulator), variable.name)
        if data.zero_point is not None and not product.subtracts_zero_point:
            result = self._less(result, data.zero_point, product.column_sums())
        if weights.zero_point is not None:
            result = self._less(result, weights.zero_point, product.row_sums())
        if data.scale is None or weights.scale is None:
            return result
        # Output channels are the last axis of the result, whatever its rank.
        scale = np.float32(data.scale) * np.asarray(weights.scale, np.float32)
        factor = np.broadcast_to(scale, shape[-1:]).reshape((1,) * (len(shape) - 1) + shape[-1:])
        return relax.op.multiply(self.emit(relax.op.astype(result, "float32")), constant(factor))

    def _less(
        self, result: relax.Expr, zero_point: np.ndarray | relax.Expr, sums: np.ndarray | relax.Expr
    ) -> relax.Expr:
        """`result - zero_point * sums`, computed now as far as it is known."""
        if isinstance(zero_point, np.ndarray) and isinstance(sums, np.ndarray):
            correction = constant((zero_point * sums).astype("int32"))
        else:
            left, right = (
                constant(np.asarray(f, np.int32)) if isinstance(f, np.ndarray) else f
                for f in (sums, zero_point)
            )
            correction = self._shared(relax.op.multiply(left, right))
        return self.emit(relax.op.subtract(result, correction))

    def _shared(self, value: relax.Expr) -> relax.Expr:
        """`emit` for what several products may need: equal calls are bound once."""
        normalized = self._builder.normalize(value)
        key = tvm_ffi.StructuralKey(normalized)
        if key not in self._emitted:
            self._emitted[key] = self.emit(normalized)
        return self._emitted[key]

    def _dequantized(self, expr: relax.Expr) -> tuple[relax.Expr, Parameters] | None:
        call = self.definition(expr)
        if operator_name(call) != "relax.dequantize":
            return None
        parameters = parameters_of(call)
        return None if parameters is None else (call.args[0], parameters)


_PRODUCTS: dict[str, type[IntegerProduct]] = {
    "relax.nn.conv2d": Convolution,
    "relax.matmul": MatrixProduct,
}


def _fits(call: Any, data: IntegerOperand, weights: IntegerOperand, form: IntegerFormat) -> bool:
    """Whether kernels take the operands: what is summed has one scale and one zero point."""
    shapes = [static_shape(argument) for argument in call.args[:2]]
    if any(shape is None or len(shape) < 2 for shape in shapes):
        return False
    rank = len(shapes[1] or ())
    exact = data.scale is None and weights.scale is None
    if not exact:
        if data.scale is None or weights.scale is None or np.ndim(data.scale):
            return False
        if weights.known is None:
            # Two computed tensors of floats are multiplied as floats unless stored for this.
            symmetric = weights.zero_point is None and not np.ndim(weights.scale)
            stored = [element_type(operand.codes) for operand in (data, weights)]
            if operator_name(call) != "relax.matmul" or not symmetric:
                return False
            return data.has_one_zero_point and stored == [form.activation, form.weight]
        if np.ndim(weights.scale) and weights.axis != rank - 1:
            return False
    if operator_name(call) == "relax.nn.conv2d":
        return (
            str(call.attrs.kernel_layout) == "HWIO"
            and weights.known is not None
            and data.has_one_zero_point
        )
    return exact or rank == 2
