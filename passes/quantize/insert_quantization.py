"""Quantise and dequantise where a tensor is to be stored in integers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.graph.conditions import CHANNELS_LAST, PRODUCTS_OF_NUMBERS
from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import constant_array, operator_name
from tinsmith.passes.quantize.numbers import (
    IntegerRange,
    affine_parameters,
    integer_range,
    quantize,
    symmetric_parameters,
)
from tinsmith.passes.quantize.operators import Parameters, dequantize_call, quantize_call
from tinsmith.passes.quantize.placement import Placement, place
from tinsmith.targets.number_formats import NumberFormats

Range = tuple[float, float]


@dataclass(frozen=True)
class QuantizationOptions:
    """How a graph is quantised.

    `activation_bits` and `weight_bits` are 2 to 8; weights get at most the
    target's `weight_bits`. `per_channel`: one scale for each output channel of a
    weight, or one for the whole. `keep_float`: operators, by the names of their
    results, that compute in float. `weight_codes` gives the codes of weights that
    an algorithm has rounded otherwise than to the nearest, by the operator's name.
    """

    activation_bits: int = 8
    weight_bits: int = 8
    per_channel: bool = True
    keep_float: frozenset[str] = frozenset()
    weight_codes: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("activation_bits", "weight_bits"):
            if not 2 <= getattr(self, name) <= 8:
                raise ValueError(f"{name} must be 2 to 8, not {getattr(self, name)}")


def weight_range(options: QuantizationOptions, table: NumberFormats) -> IntegerRange:
    """The codes of weights: symmetric about zero, of at most the table's bits."""
    bits = min(options.weight_bits, table.weight_bits)
    return integer_range(bits, signed=True, narrow=True)


def weight_scales(weights: np.ndarray, codes: IntegerRange, per_channel: bool) -> np.ndarray:
    """Scales (float32) of weights `[..., OC]`: shape `[OC]`, or `[]` for the whole."""
    if not per_channel:
        return symmetric_parameters(weights.min(), weights.max(), codes)
    axes = tuple(range(weights.ndim - 1))
    return symmetric_parameters(weights.min(axes), weights.max(axes), codes)


def rounded_weights(
    name: str, weights: np.ndarray, options: QuantizationOptions, table: NumberFormats
) -> tuple[np.ndarray, np.ndarray]:
    """Codes (int8) and scales of the weights `[..., OC]` of the operator of that name."""
    codes = weight_range(options, table)
    scales = weight_scales(weights, codes, options.per_channel)
    given = options.weight_codes.get(name)
    if given is not None:
        return np.asarray(given, "int8"), scales
    axis = weights.ndim - 1 if scales.ndim else None
    return quantize(weights, scales, 0, codes, axis), scales


@tvm.transform.module_pass(opt_level=0, name="InsertQuantization")
class InsertQuantization:
    """Store tensors in integers, and weights of integer operators too.

    Before::

        c: (1, 8, 8, 16) = conv2d(x: (1, 8, 8, 3), const w: (3, 3, 3, 16) float32)
        y: (1, 8, 8, 16) = relu(c)
        z = conv2d(y, const v: (3, 3, 16, 16) float32)

    After::

        xq: uint8 = quantize(x, scale, zero point)
        xd = dequantize(xq)
        c = conv2d(xd, dequantize(const w int8, scale: (16,), 0, axis=3))
        y = relu(c)
        yq: uint8 = quantize(y)
        z = conv2d(dequantize(yq), dequantize(const v int8))

    `ranges` maps the name of each tensor that `placement.observed_tensors` lists
    to its smallest and largest value. Scales are affine per tensor for
    activations, symmetric for weights. Every reader of a stored tensor gets a
    `dequantize` of its own, so that fusion can draw it into the reader's kernel.

    Left alone: what `placement.place` leaves in float, and results of the
    function, which are returned as they were computed.

    Raises ValueError if a range is missing or not finite.
    """

    requires = (CHANNELS_LAST, PRODUCTS_OF_NUMBERS)
    ensures = (PRODUCTS_OF_NUMBERS,)

    def __init__(
        self,
        ranges: Mapping[str, Range],
        table: NumberFormats,
        options: QuantizationOptions | None = None,
    ) -> None:
        self.ranges = dict(ranges)
        self.table = table
        self.options = options or QuantizationOptions()

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        placement = place(module, self.table, self.options.keep_float)
        parameters = activation_parameters(placement, self.ranges, self.table, self.options)
        return _Inserter(module, placement, parameters, self.table, self.options).run()


def activation_parameters(
    placement: Placement,
    ranges: Mapping[str, Range],
    table: NumberFormats,
    options: QuantizationOptions,
) -> dict[str, Parameters]:
    """Scale and zero point of every stored tensor, by its name.

    Raises ValueError if the range of an observed tensor is missing or not finite.
    """
    bits = options.activation_bits
    codes = integer_range(bits, signed=table.activation == "int8")
    symmetric = integer_range(bits, signed=True, narrow=True)
    found: dict[str, Parameters] = {}
    for name in placement.observed:
        if name not in ranges:
            raise ValueError(f"the range of tensor {name} is not known; calibrate it")
        try:
            if placement.stored[name].symmetric:
                scale = symmetric_parameters(*ranges[name], symmetric)
                found[name] = Parameters(float(scale), 0, "int8")
            else:
                scale, zero_point = affine_parameters(*ranges[name], codes)
                found[name] = Parameters(float(scale), int(zero_point), table.activation)
        except ValueError as error:
            raise ValueError(f"range of tensor {name}: {error}") from error
    return {name: found[tensor.source] for name, tensor in placement.stored.items()}


class _Inserter(BlockRewriter):
    def __init__(
        self,
        module: tvm.IRModule,
        placement: Placement,
        parameters: Mapping[str, Parameters],
        table: NumberFormats,
        options: QuantizationOptions,
    ) -> None:
        super().__init__(module)
        self._graph = Dataflow(module)
        self._parameters = parameters
        self._integer: Collection[str] = frozenset(placement.integer_operators)
        self._table = table
        self._options = options

    def begin(self, bindings: list[relax.Binding]) -> None:
        self._stored: dict[relax.Var, tuple[relax.Expr, Parameters]] = {}
        self._inside = {binding.var for binding in bindings}
        for node in self._graph.nodes:
            # Parameters are quantised at their first reader, in the block that has it.
            if node.value is None and node.name in self._parameters:
                read = {binding.var for binding in bindings} & {r.variable for r in node.readers}
                if read:
                    self._store(node.variable, node.variable, self._parameters[node.name])

    def _store(self, variable: relax.Var, value: relax.Expr, parameters: Parameters) -> None:
        quantized = self.emit(quantize_call(value, parameters), f"{variable.name}_q")
        self._stored[variable] = (quantized, parameters)

    def operand(self, variable: relax.Var) -> relax.Expr:
        """A new `dequantize` for each reader of a stored tensor."""
        held = self._stored.get(variable)
        if held is None:
            return super().operand(variable)
        return self.emit(dequantize_call(*held))

    def visit(self, variable: relax.Var, value: relax.Expr) -> relax.Expr:
        new = super().visit(variable, value)
        node = self._graph.node(variable)
        parameters = None if node is None else self._parameters.get(node.name)
        if parameters is not None:
            self._store(variable, new, parameters)
            if not isinstance(variable, relax.DataflowVar):
                # A result of the function is returned as computed.
                del self._stored[variable]
        return new

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        node = self._graph.node(variable)
        if node is None or node.name not in self._integer or operator_name(value) is None:
            return value
        call: Any = value
        weights = constant_array(call.args[1])
        if weights is None:
            return value
        stored, scales = rounded_weights(node.name, weights, self._options, self._table)
        axis = weights.ndim - 1 if scales.ndim else -1
        wide = dequantize_call(relax.const(stored, "int8"), Parameters(scales, 0, "int8"), axis)
        return relax.Call(call.op, [call.args[0], self.emit(wide)], call.attrs, call.ty_args)
