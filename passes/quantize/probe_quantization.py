"""A float graph whose layers can be quantised one by one while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import constant, constant_array, static_shape
from tinsmith.passes.quantize.bias_correction import mean_errors
from tinsmith.passes.quantize.insert_quantization import (
    QuantizationOptions,
    Range,
    activation_parameters,
    rounded_weights,
)
from tinsmith.passes.quantize.operators import Parameters, dequantize_call, quantize_call
from tinsmith.passes.quantize.placement import place
from tinsmith.targets.number_formats import NumberFormats


@tvm.transform.module_pass(opt_level=0, name="ProbeQuantization")
class ProbeQuantization:
    """Give `main` a switch for each operator that would compute in integers.

    Before::

        def main(x: (1, 8, 8, 3)):
            y = conv2d(x, const w)

    After::

        def main(x: (1, 8, 8, 3), switch0: (1,)):
            xr = add(x, multiply(switch0, subtract(dequantize(quantize(x)), x)))
            c = conv2d(xr, const w)
            e = conv2d(xr, const dequantize(wq) - w)
            y = add(c, multiply(switch0, subtract(e, const mean error)))

    Switches are 0 or 1, float32, in the order of `probed_operators`. With all of them 0 the
    graph computes what it did; with one of them 1, one operator computes with rounded operands,
    so that the error which it alone causes can be seen at the outputs: a run for each
    operator instead of a compilation. With all of them 1 the results are those of
    `InsertQuantization` with the same arguments, after `CorrectBias` with `means`.

    Raises ValueError if a range is missing or not finite.
    """

    def __init__(
        self,
        ranges: Mapping[str, Range],
        table: NumberFormats,
        options: QuantizationOptions | None = None,
        means: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.ranges = dict(ranges)
        self.table = table
        self.options = options or QuantizationOptions()
        self.means = means

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        names = probed_operators(module, self.table, self.options)
        function = module["main"]
        switches = {
            name: relax.Var(f"switch{index}", relax.TensorType((1,), "float32"))
            for index, name in enumerate(names)
        }
        extended = relax.Function(
            [*function.params, *switches.values()],
            function.body,
            function.ret_ty,
            function.is_pure,
            function.attrs,
        )
        functions = {name: f for name, f in module.functions_items() if name.name_hint != "main"}
        functions[tvm.ir.GlobalVar("main")] = extended
        opened = tvm.IRModule(functions, attrs=module.attrs, global_infos=module.global_infos)
        errors = {}
        if self.means is not None:
            errors = mean_errors(module, self.means, self.table, self.options)
        placement = place(module, self.table, self.options.keep_float)
        parameters = activation_parameters(placement, self.ranges, self.table, self.options)
        graph = Dataflow(opened)
        layers: dict[relax.Var, _Layer] = {}
        for name, switch in switches.items():
            node = graph.named(name)
            if node is not None:
                call: Any = node.value
                weights = constant_array(call.args[1])
                change = None
                if weights is not None:
                    codes, scales = rounded_weights(name, weights, self.options, self.table)
                    change = np.asarray(codes * scales - weights, np.float32)
                sources = [graph.node(operand) for operand in call.args[:2]]
                left, right = (s if s is None else parameters.get(s.name) for s in sources)
                layers[node.variable] = _Layer(switch, left, right, change, errors.get(name))
        return _Prober(opened, layers).run()


def probed_operators(
    module: tvm.IRModule, table: NumberFormats, options: QuantizationOptions | None = None
) -> tuple[str, ...]:
    """The operators that get a switch, by the names of their results, in order."""
    keep_float = options.keep_float if options is not None else ()
    return place(module, table, keep_float).integer_operators


@dataclass(frozen=True)
class _Layer:
    """Switch, meaning of stored operands, change of constant weights, and its mean effect."""

    switch: relax.Var
    left: Parameters | None
    right: Parameters | None
    change: np.ndarray | None
    mean_error: np.ndarray | None


class _Prober(BlockRewriter):
    def __init__(self, module: tvm.IRModule, layers: Mapping[relax.Var, _Layer]) -> None:
        super().__init__(module)
        self._layers = layers

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        layer = self._layers.get(variable)
        if layer is None:
            return value
        call: Any = value
        data = self._rounded(call.args[0], layer.left, layer.switch)
        weights = self._rounded(call.args[1], layer.right, layer.switch)
        result = self.emit(relax.Call(call.op, [data, weights], call.attrs, call.ty_args))
        if layer.change is None:
            return result
        change = constant(layer.change)
        error = self.emit(relax.Call(call.op, [data, change], call.attrs, call.ty_args))
        if layer.mean_error is not None:
            shape = (1,) * (len(static_shape(call) or ()) - 1) + (-1,)
            mean = constant(layer.mean_error.astype(np.float32).reshape(shape))
            error = self.emit(relax.op.subtract(error, mean))
        return self._switched(result, error, layer.switch)

    def _rounded(
        self, operand: relax.Expr, parameters: Parameters | None, switch: relax.Var
    ) -> relax.Expr:
        if parameters is None:
            return operand
        stored = self.emit(quantize_call(operand, parameters))
        rounded = self.emit(dequantize_call(stored, parameters))
        return self._switched(operand, self.emit(relax.op.subtract(rounded, operand)), switch)

    def _switched(self, value: relax.Expr, change: relax.Expr, switch: relax.Var) -> relax.Expr:
        return self.emit(relax.op.add(value, self.emit(relax.op.multiply(change, switch))))
