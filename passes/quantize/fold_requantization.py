"""Requantisation as one multiplication and one addition for each integer that is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import (
    constant,
    constant_array,
    element_type,
    operator_name,
    static_shape,
)
from tinsmith.passes.quantize.operators import Parameters, parameters_of, quantize_call

# The operators whose 32-bit sums are requantised.
_PRODUCTS = frozenset({"relax.nn.conv2d", "relax.matmul"})
# What remains of a quantisation when codes are counted from the lowest one.
_UNIT = {"uint8": Parameters(1.0, 0, "uint8"), "int8": Parameters(1.0, -128, "int8")}
# The unsigned code less the signed one of the same value.
_UNSIGNED = {"uint8": 0, "int8": 128}


@dataclass(frozen=True)
class _Integers:
    """An integer tensor plus an integer `shift` that broadcasts against it, read as float32."""

    tensor: relax.Expr
    shift: np.ndarray | None = None


@dataclass(frozen=True)
class _Real:
    """A float tensor of which no more is known."""

    tensor: relax.Expr


@dataclass(frozen=True)
class _Bounded:
    """A sum between bounds; scaling it by a positive factor scales the bounds."""

    value: _Sum
    low: np.ndarray | None = None
    high: np.ndarray | None = None


_Term = _Integers | _Real | _Bounded


@dataclass(frozen=True)
class _Sum:
    """`offset` plus each term times its factor; float64 arrays that broadcast."""

    terms: tuple[tuple[_Term, np.ndarray], ...]
    offset: np.ndarray

    def scaled(self, factor: np.ndarray) -> _Sum:
        return _Sum(tuple((term, f * factor) for term, f in self.terms), self.offset * factor)

    def plus(self, other: _Sum) -> _Sum:
        return _Sum(self.terms + other.terms, self.offset + other.offset)


_ONE, _ZERO = np.float64(1), np.float64(0)


@tvm.transform.module_pass(opt_level=0, name="FoldRequantization")
class FoldRequantization:
    """Fold scales, zero points and bias between integers into one factor and one offset.

    Before::

        a: (1, 8, 8, 16) int32 = subtract(conv2d(xq, const wq), const c: (1, 1, 1, 16) int32)
        b: (1, 8, 8, 16) = add(multiply(astype(a, "float32"), const m), const bias)
        d = add(b, dequantize(rq: (1, 8, 8, 16) uint8, sr, zr))
        y: uint8 = quantize(relu(d), s, z)

    After::

        a: (1, 8, 8, 16) int32 = conv2d(xq, const wq)
        b = multiply(astype(a, "float32"), const m / s)
        d = add(b, const (bias - c m - zr sr) / s)
        e = add(d, multiply(astype(rq, "float32"), const sr / s))
        y: uint8 = quantize(add(relu(e), const z), 1, 0)

    Without a bound around the sum, z is part of the constant too. Each factor is rounded
    to float32 once. A code may differ from the unfolded one only where the real value lies
    within about 1e-4 steps of a tie. No scale remains in a kernel's code, so that layers of
    one shape share one kernel.

    Codes are those of unsigned storage to the last bit even where activations are signed (ARM):
    the float32 arithmetic is that of the unsigned codes, to which 128 is added as an integer
    first, times the sum of the weights behind a product::

        y: int8 = quantize(multiply(astype(add(conv2d(xq: int8, wq), const 128 sum(wq)), "float32"),
                                    const m / s), 1, -128)

    Where all that is added to the one product is a whole number of its units, as in files
    whose biases are int32, it is added as an integer, and z after rounding: such codes are
    those of every runtime that requantises by one float32 factor, to the last one::

        y: uint8 = quantize(multiply(astype(add(conv2d(xq, const wq), const k), "float32"),
                                     const m / s), 1, z)

    A sum of two dequantised tensors is folded alike.

    Left alone: what else reads no sum of products (`conv2d` or `matmul` of integers),
    scales per channel of the result, and bounds that a factor would turn around.
    """

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return _Folder(module).run()


class _Folder(BlockRewriter):
    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        parameters = parameters_of(value)
        if operator_name(value) != "relax.quantize" or parameters is None:
            return value
        if not parameters.per_tensor or parameters.dtype not in _UNIT:
            return value
        call: Any = value
        total = self._sum(call.args[0])
        residual = len(total.terms) == 2 and all(isinstance(t, _Integers) for t, _ in total.terms)
        if not residual and not any(self._is_product(term) for term, _ in total.terms):
            return value
        scaled = total.scaled(_ONE / np.float64(np.float32(parameters.scale)))
        rank = len(static_shape(call.args[0]) or ())
        exact = self._with_integer_offset(scaled, rank)
        if exact is not None:
            return quantize_call(exact, replace(parameters, scale=1.0))
        lowest = float(_UNIT[parameters.dtype].zero_point)
        shifted = _Sum(scaled.terms, scaled.offset + (float(parameters.zero_point) - lowest))
        if not _keeps_bounds(shifted):
            return value
        return quantize_call(self._emitted(shifted, rank), _UNIT[parameters.dtype])

    def _with_integer_offset(self, total: _Sum, rank: int) -> relax.Expr | None:
        """One product's sum with an offset in whole units of it; None where it is not that."""
        if len(total.terms) != 1:
            return None
        term, factor = total.terms[0]
        if not isinstance(term, _Integers) or not np.all(factor):
            return None
        units = total.offset / factor
        if term.shift is not None:
            units = units + term.shift
        whole = np.rint(units)
        # A bias that was an integer has been rounded to float32 since. What is lost if it was
        # none is a thousandth of a step of the result.
        lost = np.abs(units - whole)
        if (
            (lost > 0.1).any()
            or (lost * np.abs(factor) > 1e-3).any()
            or np.abs(whole).max() > 2**30
        ):
            return None
        return self._scaled(_Integers(term.tensor, whole if whole.any() else None), factor, rank)

    def _plus(self, tensor: relax.Expr, shift: np.ndarray, rank: int) -> relax.Expr:
        """`tensor + shift` in int32."""
        if element_type(tensor) != "int32":
            tensor = self.emit(relax.op.astype(tensor, "int32"))
        shape = (1,) * (rank - shift.ndim) + shift.shape
        return self.emit(relax.op.add(tensor, constant(shift.astype(np.int32).reshape(shape))))

    def _is_product(self, term: _Term) -> bool:
        if isinstance(term, _Bounded):
            return any(self._is_product(inner) for inner, _ in term.value.terms)
        if not isinstance(term, _Integers):
            return False
        call = self.definition(term.tensor)
        if operator_name(call) == "relax.subtract":
            call = self.definition(call.args[0])
        return operator_name(call) in _PRODUCTS

    def _sum(self, expr: relax.Expr) -> _Sum:
        """What `expr` is made of, as far as nobody else reads it."""
        known = constant_array(expr)
        if known is not None and known.dtype == np.float32:
            return _Sum((), known.astype(np.float64))
        call = self.definition(expr)
        if self.use_count(expr) > 1 or element_type(expr) != "float32":
            call = None
        name = operator_name(call)
        if name in ("relax.add", "relax.subtract"):
            sign = _ONE if name == "relax.add" else -_ONE
            return self._sum(call.args[0]).plus(self._sum(call.args[1]).scaled(sign))
        if name == "relax.multiply":
            for factor, other in (call.args[::-1], call.args):
                array = constant_array(factor)
                if array is not None:
                    return self._sum(other).scaled(array.astype(np.float64))
        if name == "relax.astype":
            return self._integers(call.args[0])
        if name == "relax.dequantize":
            meaning = parameters_of(call)
            if meaning is not None and meaning.per_tensor:
                scale = np.float64(np.float32(meaning.scale))
                shift = _UNSIGNED.get(meaning.dtype, 0)
                codes = _Integers(call.args[0], np.asarray(shift) if shift else None)
                return _Sum(((codes, scale),), -scale * float(meaning.zero_point + shift))
        low, high = _bounds(call)
        if low is not None or high is not None:
            return _Sum(((_Bounded(self._sum(call.args[0]), low, high), _ONE),), _ZERO)
        return _Sum(((_Real(expr), _ONE),), _ZERO)

    def _integers(self, expr: relax.Expr) -> _Sum:
        """The integer tensor `expr` in float.

        What is subtracted from a product of codes with constants is apart, in units of the
        product of unsigned codes.
        """
        call, tensor, subtracted = self.definition(expr), expr, np.asarray(0)
        if operator_name(call) == "relax.subtract" and self.use_count(expr) <= 1:
            known = constant_array(call.args[1])
            if known is not None:
                tensor, subtracted = call.args[0], known
        sums = self._sums_of_weights(tensor)
        if sums is None:
            return _Sum(((_Integers(expr), _ONE),), _ZERO)
        shift = sums * _UNSIGNED[str(element_type(self.definition(tensor).args[0]))]
        codes = _Integers(tensor, shift if shift.any() else None)
        return _Sum(((codes, _ONE),), -(subtracted.astype(np.int64) + shift).astype(np.float64))

    def _sums_of_weights(self, expr: relax.Expr) -> np.ndarray | None:
        """For each output of a product of 8-bit codes with constants, the sum of these.

        None for anything else, and for average pools: what pads them is no code.
        """
        call = self.definition(expr)
        name = operator_name(call)
        if name not in _PRODUCTS or element_type(call.args[0]) not in _UNSIGNED:
            return None
        weights = constant_array(call.args[1])
        if weights is None:
            return None
        if name == "relax.matmul":
            return weights.sum(-2, dtype=np.int64, keepdims=True)
        if int(call.attrs.groups) > 1 and (weights == 1).all():
            return None
        return weights.sum((0, 1, 2), dtype=np.int64, keepdims=True)

    def _emitted(self, total: _Sum, rank: int) -> relax.Expr:
        """The float32 expression of a sum, products before the offset."""
        (first, factor), *others = total.terms
        result = self._scaled(first, factor, rank)
        # Early, so that each further product is added to it in one instruction.
        if np.any(total.offset):
            result = self.emit(relax.op.add(result, _operand(total.offset, rank)))
        for term, factor in others:
            result = self.emit(relax.op.add(result, self._scaled(term, factor, rank)))
        return result

    def _scaled(self, term: _Term, factor: np.ndarray, rank: int) -> relax.Expr:
        if isinstance(term, _Bounded):
            return self._limited(term, factor, rank)
        tensor = term.tensor
        if isinstance(term, _Integers):
            if term.shift is not None:
                tensor = self._plus(tensor, term.shift, rank)
            tensor = self.emit(relax.op.astype(tensor, "float32"))
        if np.all(factor == 1):
            return tensor
        return self.emit(relax.op.multiply(tensor, _operand(factor, rank)))

    def _limited(self, term: _Bounded, factor: np.ndarray, rank: int) -> relax.Expr:
        value = self._emitted(term.value.scaled(factor), rank)
        if term.low is not None:
            if np.any(term.low):
                value = self.emit(relax.op.maximum(value, _operand(term.low * factor, rank)))
            else:
                value = self.emit(relax.op.nn.relu(value))
        if term.high is not None:
            value = self.emit(relax.op.minimum(value, _operand(term.high * factor, rank)))
        return value


def _bounds(call: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The constants between which a call limits its first operand."""
    name = operator_name(call)
    if name == "relax.nn.relu":
        return _ZERO, None
    if name == "relax.nn.relu6":
        return _ZERO, np.float64(6)
    if name == "relax.clip":
        low, high = (np.float64(bound.value) for bound in call.args[1:3])
        return low, high
    if name in ("relax.maximum", "relax.minimum"):
        bound = constant_array(call.args[1])
        if bound is not None and static_shape(call.args[0]) == static_shape(call):
            wide = bound.astype(np.float64)
            return (wide, None) if name == "relax.maximum" else (None, wide)
    return None, None


def _keeps_bounds(total: _Sum) -> bool:
    """Whether every factor of a bounded sum is positive."""
    for term, factor in total.terms:
        if isinstance(term, _Bounded) and not (np.all(factor > 0) and _keeps_bounds(term.value)):
            return False
    return True


def _operand(values: np.ndarray, rank: int) -> relax.Expr:
    """A float32 constant of that rank: numbers are operands too, and not part of the code."""
    array = np.asarray(values, np.float32)
    shape: Sequence[int] = (1,) * (rank - array.ndim) + array.shape
    return constant(array.reshape(shape))
