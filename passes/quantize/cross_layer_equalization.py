"""Channels of inner tensors brought to like ranges by scaling the weights around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from passes.graph.rewriter import BlockRewriter
from passes.graph.tensors import constant, constant_array, operator_name, static_shape
from passes.quantize.dataflow import Dataflow, Node

_PRODUCTS = frozenset({"relax.nn.conv2d", "relax.matmul"})
# f(s * x) = s * f(x) for these and any s > 0.
_HOMOGENEOUS = frozenset({"relax.nn.relu", "relax.nn.leakyrelu"})


@tvm.transform.module_pass(opt_level=0, name="CrossLayerEqualization")
class CrossLayerEqualization:
    """Scale channels between two linear operators so that they use the integers equally well.

    Before::

        a: (1, 8, 8, 16) = conv2d(x, const w1)
        b = add(a, const b1: (1, 1, 1, 16))
        c = clip(b, 0, 6)
        y = conv2d(c, const w2)

    After, for a positive s: (16,)::

        a = conv2d(x, const w1 / s)
        b = add(a, const b1 / s)
        c = minimum(relu(b), const 6 / s)
        y = conv2d(c, const w2 * s)         # s along the input channels

    The graph computes the same. Source: Nagel et al. 2019, "Data-Free Quantization
    Through Weight Equalization and Bias Correction", equations 9 to 11
    (arXiv:1906.04721): s = sqrt(r1 / r2) with the ranges r1 of w1's output channels
    and r2 of w2's input channels.

    `channel_ranges` maps names of tensors (that of `c` above, as
    `equalizable_tensors` lists them) to the largest magnitude of each channel
    on calibration data. They replace r1, because weights with a scale per output
    channel gain nothing from equal ranges themselves; and where the reader is
    depthwise, whose scales are per channel too, s = r1. Channels below `floor`
    of the largest range are scaled as if they had that range, so that one that
    is rarely active does not saturate when it is.

    Left alone: tensors that have other readers, and grouped convolutions.
    """

    def __init__(
        self, channel_ranges: Mapping[str, np.ndarray] | None = None, floor: float = 0.05
    ) -> None:
        if not 0 < floor <= 1:
            raise ValueError(f"floor must be above 0 and at most 1, not {floor}")
        self.channel_ranges = None if channel_ranges is None else dict(channel_ranges)
        self.floor = floor

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        pairs = _find_pairs(Dataflow(module))
        scales = {}
        for pair in pairs:
            first = None
            if self.channel_ranges is not None:
                first = self.channel_ranges.get(pair.tensor.name)
                if first is None:
                    continue
            scales[pair] = _pair_scales(pair, first, self.floor)
        return _Scaler(module, scales).run()


def equalizable_tensors(module: tvm.IRModule) -> tuple[str, ...]:
    """Names of the tensors whose channels `CrossLayerEqualization` can scale, in order."""
    return tuple(pair.tensor.name for pair in _find_pairs(Dataflow(module)))


@dataclass(frozen=True)
class _Pair:
    """Two linear operators, and what lies between: biases, at most one activation, reshapes."""

    first: Node
    between: tuple[Node, ...]
    second: Node

    @property
    def tensor(self) -> Node:
        """The tensor that the second operator reads."""
        return self.between[-1] if self.between else self.first


def _weights(node: Node) -> np.ndarray | None:
    call: Any = node.value
    return constant_array(call.args[1])


def _is_depthwise(node: Node) -> bool:
    call: Any = node.value
    weights = _weights(node)
    return (
        node.operator == "relax.nn.conv2d"
        and weights is not None
        and weights.shape[2] == 1
        and int(call.attrs.groups) == weights.shape[3] > 1
    )


def _is_linear(node: Node) -> bool:
    """Whether the node is a product with constant weights, output channels last."""
    if node.operator not in _PRODUCTS:
        return False
    call: Any = node.value
    weights = _weights(node)
    if weights is None or weights.dtype != np.float32:
        return False
    if node.operator == "relax.matmul":
        return weights.ndim == 2
    layouts = (str(call.attrs.kernel_layout), str(call.attrs.out_layout))
    return layouts == ("HWIO", "NHWC") and (int(call.attrs.groups) == 1 or _is_depthwise(node))


def _find_pairs(graph: Dataflow) -> list[_Pair]:
    pairs = []
    for first in graph.nodes:
        if not _is_linear(first):
            continue
        channels = (static_shape(first.variable) or (0,))[-1]
        between: list[Node] = []
        current = first
        while len(current.readers) == 1 and not current.escapes:
            reader = current.readers[0]
            if _is_linear(reader):
                if reader.value.args[0].same_as(current.variable) and (  # type: ignore[union-attr]
                    reader.operator == "relax.matmul"
                    or str(reader.value.attrs.data_layout) == "NHWC"  # type: ignore[union-attr]
                ):
                    pairs.append(_Pair(first, tuple(between), reader))
                break
            if not _scales_along(reader, channels):
                break
            between.append(reader)
            current = reader
    return pairs


def _scales_along(node: Node, channels: int) -> bool:
    """Whether a scale of the operand's channels can be moved behind the operator."""
    call: Any = node.value
    if node.operator in _HOMOGENEOUS:
        return True
    if node.operator == "relax.clip":
        return float(call.args[1].value) == 0.0
    if node.operator == "relax.minimum":
        bound = constant_array(call.args[1])
        return bound is not None and _along_channels(bound, channels) is not None
    if node.operator == "relax.add":
        bias = constant_array(call.args[1])
        return bias is not None and _along_channels(bias, channels) is not None
    return False


def _along_channels(array: np.ndarray, channels: int) -> np.ndarray | None:
    """A constant that varies along the last axis only, as a vector of that many channels."""
    if array.size not in (1, channels) or (array.size > 1 and array.shape[-1] != channels):
        return None
    return np.broadcast_to(array.reshape(-1), (channels,))


def _pair_scales(pair: _Pair, observed: np.ndarray | None, floor: float) -> np.ndarray:
    """The s of one pair: float64, one for each channel, geometric mean 1."""
    first, second = np.asarray(_weights(pair.first)), np.asarray(_weights(pair.second))
    depthwise = _is_depthwise(pair.second)
    of_first = np.abs(first).max(tuple(range(first.ndim - 1))).astype(np.float64)
    axis = second.ndim - 1 if depthwise else second.ndim - 2
    others = tuple(i for i in range(second.ndim) if i != axis)
    of_second = np.abs(second).max(others).astype(np.float64)
    ranges = of_first if observed is None else np.asarray(observed, np.float64)
    if ranges.max() <= 0 or of_second.max() <= 0:
        return np.ones_like(of_first)
    ranges = np.maximum(ranges, floor * ranges.max())
    of_second = np.maximum(of_second, floor * of_second.max())
    # A depthwise reader has a scale per channel itself: nothing is to be balanced.
    alone = observed is not None and depthwise
    scales = ranges if alone else np.sqrt(ranges / of_second)
    return np.asarray(scales / np.exp(np.log(scales).mean()))


class _Scaler(BlockRewriter):
    def __init__(self, module: tvm.IRModule, scales: Mapping[_Pair, np.ndarray]) -> None:
        super().__init__(module)
        self._produced = {pair.first.variable: s for pair, s in scales.items()}
        self._read = {pair.second.variable: (pair.second, s) for pair, s in scales.items()}
        self._passed = {node.variable: s for pair, s in scales.items() for node in pair.between}

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        call: Any = value
        if variable in self._passed:
            return self._between(call, self._passed[variable])
        if variable not in self._produced and variable not in self._read:
            return value
        weights = np.asarray(constant_array(call.args[1]), np.float64)
        if variable in self._read:
            node, scales = self._read[variable]
            weights = weights * (scales if _is_depthwise(node) else scales[:, None])
        if variable in self._produced:
            weights = weights / self._produced[variable]
        return relax.Call(
            call.op,
            [call.args[0], constant(weights.astype(np.float32))],
            call.attrs,
            call.ty_args,
        )

    def _between(self, call: Any, scales: np.ndarray) -> relax.Expr:
        name = operator_name(call)
        shape = (1,) * (len(static_shape(call) or ()) - 1) + (scales.size,)
        if name in _HOMOGENEOUS:
            return call
        if name == "relax.clip":
            bound = constant((float(call.args[2].value) / scales).astype(np.float32).reshape(shape))
            return relax.op.minimum(self.emit(relax.op.nn.relu(call.args[0])), bound)
        along = _along_channels(np.asarray(constant_array(call.args[1])), scales.size)
        moved = constant((along / scales).astype(np.float32).reshape(shape))
        return relax.Call(call.op, [call.args[0], moved], call.attrs, call.ty_args)
