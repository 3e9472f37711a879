"""The mean error that rounded weights cause, taken out of the bias."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.graph.conditions import CHANNELS_LAST, PRODUCTS_OF_NUMBERS
from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import constant, constant_array, operator_name, static_shape
from tinsmith.passes.quantize.insert_quantization import QuantizationOptions, rounded_weights
from tinsmith.passes.quantize.observers import Observer
from tinsmith.passes.quantize.placement import place
from tinsmith.targets.number_formats import NumberFormats

# Behind the name of a product that gets a bias of its own.
PRODUCT_SUFFIX = "_product"


class ChannelMeanObserver(Observer):
    """The mean of every channel over all samples; `axis` is that of the channels."""

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis
        self._sum: np.ndarray | None = None
        self._count = 0

    @property
    def means(self) -> np.ndarray:
        """float64, one for each channel. Raises ValueError if nothing was observed."""
        if self._sum is None:
            raise ValueError("no sample was observed")
        return self._sum / self._count

    def range(self) -> tuple[float, float]:
        """The smallest and largest mean."""
        return float(self.means.min()), float(self.means.max())

    def _update(self, array: np.ndarray, low: float, high: float) -> None:
        others = tuple(i for i in range(array.ndim) if i != self.axis % array.ndim)
        total = array.sum(others, dtype=np.float64)
        self._sum = total if self._sum is None else self._sum + total
        self._count += array.size // total.size


def operand_tensors(
    module: tvm.IRModule, table: NumberFormats, keep_float: Collection[str] = ()
) -> dict[str, int]:
    """Tensors that integer operators with constant weights read, and the axis of channels."""
    graph = Dataflow(module)
    found: dict[str, int] = {}
    for name in place(module, table, keep_float).integer_operators:
        node = graph.named(name)
        call: Any = None if node is None else node.value
        source = graph.node(call.args[0])
        if source is not None and constant_array(call.args[1]) is not None:
            layout = getattr(call.attrs, "data_layout", None)
            found[source.name] = 1 if layout is not None and str(layout) == "NCHW" else -1
    return found


@tvm.transform.module_pass(opt_level=0, name="CorrectBias")
class CorrectBias:
    """Subtract from the bias what rounding the weights adds to each channel on average.

    Before::

        a: (1, 8, 8, 16) = conv2d(x: (1, 8, 8, 3), const w: (3, 3, 3, 16))
        y = add(a, const b: (1, 1, 1, 16))

    After, with rounded weights v and the mean m: (3,) of the channels of x::

        a = conv2d(x, const w)
        y = add(a, const b - sum over taps and inputs of (v - w) * m)

    The weights are rounded later, by `InsertQuantization` with the same options.
    `means` maps the names that `operand_tensors` lists to the means of their
    channels. Source: Nagel et al. 2019, "Data-Free Quantization Through Weight
    Equalization and Bias Correction", equation 17 (arXiv:1906.04721), with means
    measured instead of derived from batch normalisation.

    Left alone: operators that are not quantised, or whose operand has no means.
    """

    requires = (CHANNELS_LAST, PRODUCTS_OF_NUMBERS)

    def __init__(
        self,
        means: Mapping[str, np.ndarray],
        table: NumberFormats,
        options: QuantizationOptions | None = None,
    ) -> None:
        self.means = dict(means)
        self.table = table
        self.options = options or QuantizationOptions()

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        graph = Dataflow(module)
        errors: dict[relax.Var, np.ndarray] = {}
        for name, error in mean_errors(module, self.means, self.table, self.options).items():
            node = graph.named(name)
            if node is not None:
                errors[node.variable] = error
        return _Corrector(module, errors).run()


def mean_errors(
    module: tvm.IRModule,
    means: Mapping[str, np.ndarray],
    table: NumberFormats,
    options: QuantizationOptions,
) -> dict[str, np.ndarray]:
    """What rounding the weights adds to each output channel on average, by operator."""
    graph = Dataflow(module)
    errors: dict[str, np.ndarray] = {}
    for name in place(module, table, options.keep_float).integer_operators:
        node = graph.named(name)
        call: Any = None if node is None else node.value
        source = graph.node(call.args[0])
        weights = None if call is None else constant_array(call.args[1])
        if source is not None and weights is not None and source.name in means:
            codes, scales = rounded_weights(name, weights, options, table)
            change = codes * scales.astype(np.float64) - weights
            errors[name] = _mean_error(change, means[source.name], call)
    return errors


def _mean_error(change: np.ndarray, means: np.ndarray, call: Any) -> np.ndarray:
    """What a change of the weights `[..., IC, OC]` adds to each output channel on average."""
    taps = change.reshape(-1, *change.shape[-2:]).sum(0)
    outputs, inputs = taps.shape[1], taps.shape[0]
    groups = len(means) // inputs
    # Output channels are ordered by group; each reads the inputs of its own.
    per_output = np.repeat(means.reshape(groups, inputs), outputs // groups, axis=0)
    return np.asarray((taps.T * per_output).sum(1))


class _Corrector(BlockRewriter):
    def __init__(self, module: tvm.IRModule, errors: Mapping[relax.Var, np.ndarray]) -> None:
        super().__init__(module)
        self._errors = errors
        graph = Dataflow(module)
        # The bias behind a product takes its correction, if nobody else reads the product.
        self._taken: dict[relax.Var, np.ndarray] = {}
        self._alone: dict[relax.Var, np.ndarray] = {}
        for variable, error in errors.items():
            node = graph.node(variable)
            reader: Any = node.readers[0] if node is not None and len(node.readers) == 1 else None
            bias = None
            joined = reader is not None and node is not None and not node.escapes
            if joined and reader.operator == "relax.add":
                bias = constant_array(reader.value.args[1])
            if bias is not None and bias.shape[-1:] == error.shape and bias.size == error.size:
                self._taken[reader.variable] = error
            else:
                self._alone[variable] = error

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        call: Any = value
        if variable in self._taken and operator_name(value) == "relax.add":
            bias = np.asarray(constant_array(call.args[1]))
            corrected = (bias - self._taken[variable]).astype(np.float32).reshape(bias.shape)
            return relax.op.add(call.args[0], constant(corrected))
        if variable in self._alone:
            error = self._alone[variable]
            shape = (1,) * (len(static_shape(value) or ()) - 1) + (error.size,)
            # The sum takes the name: it is what readers see, and what has a range.
            product = self.emit(value, variable.name + PRODUCT_SUFFIX)
            return relax.op.add(product, constant((-error).astype(np.float32).reshape(shape)))
        return value
