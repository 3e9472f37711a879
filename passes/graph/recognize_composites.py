"""Composite operators that an exporter spelled out, recognised again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import (
    constant,
    constant_array,
    constant_scalar,
    element_type,
    integers,
    operator_name,
    static_shape,
)

_TOLERANCE = 1e-6  # float32 constants such as sqrt(2) are off by less than this


@tvm.transform.module_pass(opt_level=0, name="RecognizeComposites")
class RecognizeComposites:
    """Replace the spelled-out forms of GELU and layer normalisation by their operators.

    Before (GELU)::

        a = divide(x, const 1.41421)        # or multiply(x, const 0.707107)
        b = add(erf(a), const 1.)
        y = multiply(multiply(x, b), const 0.5)

    After::

        y = gelu(x)

    Before (layer normalisation over the last axis, with x: (1, 128, 384))::

        m: (1, 128, 1) = mean(x, axis=[-1], keepdims=True)
        d = subtract(x, m)
        v: (1, 128, 1) = mean(multiply(d, d), axis=[-1], keepdims=True)
        n = divide(d, sqrt(add(v, const epsilon)))
        y = add(multiply(n, const gamma: (384,)), const beta: (384,))

    After::

        y = layer_norm(x, gamma, beta, axes=[-1], epsilon=epsilon)

    Both are exact up to the rounding of the last bit. Left alone: the tanh
    approximation of GELU, layer normalisation without a constant scale and
    shift, and any form of which an intermediate result is used elsewhere (the
    work would be done twice).
    """

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return _Recognizer(module).run()


class _Recognizer(BlockRewriter):
    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        name = operator_name(value)
        if name == "relax.multiply":
            source = self._gelu_source(value)
            return value if source is None else relax.op.nn.gelu(source)
        if name == "relax.add":
            return self._layer_norm(value)
        return value

    def _scaled(self, expr: Any, factor: float) -> relax.Expr | None:
        """`x` if `expr` computes `x * factor` with a constant factor."""
        name = operator_name(expr)
        if name not in ("relax.multiply", "relax.divide"):
            return None
        for data, other in ((expr.args[0], expr.args[1]), (expr.args[1], expr.args[0])):
            found = constant_scalar(other)
            if found is None or (name == "relax.divide" and other.same_as(expr.args[0])):
                continue
            found = 1 / found if name == "relax.divide" and found else found
            if math.isclose(found, factor, rel_tol=_TOLERANCE):
                return data
        return None

    def _gelu_source(self, call: relax.Call) -> relax.Expr | None:
        """`x` if `call` is the last multiplication of a GELU of `x`, in any order of factors."""
        factors = self._factors(call)
        halves = [f for f in factors if (constant_scalar(f) or 0.0) == 0.5]
        others = [f for f in factors if constant_scalar(f) is None]
        if len(factors) != 3 or len(halves) != 1 or len(others) != 2:
            return None
        for gate, data in (others, others[::-1]):
            if self._erf_gate_source(gate, data) and str(element_type(data)) == "float32":
                return data
        return None

    def _factors(self, call: relax.Call) -> list[relax.Expr]:
        """The three factors of `a * (b * c)` or `(a * b) * c`, or fewer."""
        for inner, outer in ((call.args[0], call.args[1]), (call.args[1], call.args[0])):
            product = self.definition(inner)
            if operator_name(product) == "relax.multiply" and self.use_count(inner) == 1:
                factors = [*product.args, outer]
                if any(constant_scalar(factor) is not None for factor in factors):
                    return factors
        return list(call.args)

    def _erf_gate_source(self, gate: relax.Expr, data: relax.Expr) -> bool:
        """Whether `gate` is `1 + erf(data / sqrt(2))` and used nowhere else."""
        total = self.definition(gate)
        if operator_name(total) != "relax.add" or self.use_count(gate) != 1:
            return False
        if constant_scalar(total.args[1]) != 1.0:
            return False
        error = self.definition(total.args[0])
        if operator_name(error) != "relax.erf" or self.use_count(total.args[0]) != 1:
            return False
        source = self._scaled(self.definition(error.args[0]), math.sqrt(0.5))
        return source is not None and source.same_as(data)

    def _layer_norm(self, call: relax.Call) -> relax.Expr:
        beta = constant_array(call.args[1])
        product = self.definition(call.args[0])
        if beta is None or operator_name(product) != "relax.multiply":
            return call
        gamma = constant_array(product.args[1])
        if gamma is None or self.use_count(call.args[0]) != 1:
            return call
        found = self._normalized(product.args[0])
        if found is None or self.use_count(product.args[0]) != 1:
            return call
        data, epsilon = found
        width = (static_shape(data) or (0,))[-1]
        if not all(_is_row(array, width) for array in (gamma, beta)):
            return call
        scale, shift = (constant(array.reshape(width)) for array in (gamma, beta))
        return relax.op.nn.layer_norm(data, scale, shift, axes=[-1], epsilon=epsilon)

    def _normalized(self, expr: relax.Expr) -> tuple[relax.Expr, float] | None:
        """`(x, epsilon)` if `expr` is `(x - mean) / sqrt(variance + epsilon)` on the last axis."""
        quotient = self.definition(expr)
        if operator_name(quotient) != "relax.divide":
            return None
        centred, deviation = quotient.args
        root = self.definition(deviation)
        if operator_name(root) != "relax.sqrt" or self.use_count(deviation) != 1:
            return None
        shifted = self.definition(root.args[0])
        if operator_name(shifted) != "relax.add" or self.use_count(root.args[0]) != 1:
            return None
        epsilon = constant_scalar(shifted.args[1])
        variance = self._mean_of_last_axis(shifted.args[0])
        square = self.definition(variance)
        if epsilon is None or operator_name(square) != "relax.multiply":
            return None
        if not all(factor.same_as(centred) for factor in square.args):
            return None
        difference = self.definition(centred)
        # The centred data is read three times: twice by the square, once by the quotient.
        if operator_name(difference) != "relax.subtract" or self.use_count(centred) != 3:
            return None
        source = self._mean_of_last_axis(difference.args[1])
        if source is None or not source.same_as(difference.args[0]):
            return None
        return source, epsilon

    def _mean_of_last_axis(self, expr: relax.Expr) -> relax.Expr | None:
        """`x` if `expr` is the mean of `x` over its last axis, kept, and used once."""
        mean = self.definition(expr)
        if operator_name(mean) != "relax.mean" or self.use_count(expr) != 1:
            return None
        rank = len(static_shape(mean.args[0]) or ())
        axes = mean.attrs.axis
        if rank == 0 or axes is None or not mean.attrs.keepdims:
            return None
        return mean.args[0] if [axis % rank for axis in integers(axes)] == [rank - 1] else None


def _is_row(array: np.ndarray, width: int) -> bool:
    return array.size == width and array.shape[-1:] == (width,)
