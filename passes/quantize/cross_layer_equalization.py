"""Channels of inner tensors brought to like ranges by scaling the weights around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.graph.conditions import CHANNELS_LAST, PRODUCTS_OF_NUMBERS
from tinsmith.passes.graph.dataflow import Dataflow, Node
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import constant, constant_array, operator_name, static_shape

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

    Tensors that are added are scaled alike: all convolutions that write and read
    a residual stream make one group. A mean over pixels passes scales on.

    Left alone: tensors that other operators read or write, results of the
    function, and grouped convolutions.
    """

    requires = (CHANNELS_LAST, PRODUCTS_OF_NUMBERS)

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
        scaled = []
        for group in _find_groups(Dataflow(module)):
            observed = None
            if self.channel_ranges is not None:
                found = [self.channel_ranges.get(name) for name in group.tensors]
                if any(ranges is None for ranges in found):
                    continue
                observed = np.max([np.asarray(r, np.float64) for r in found], axis=0)
            scaled.append((group, _group_scales(group, observed, self.floor)))
        return _Scaler(module, scaled).run()


def equalizable_tensors(module: tvm.IRModule) -> tuple[str, ...]:
    """Names of the tensors whose channels `CrossLayerEqualization` can scale, in order."""
    return tuple(name for group in _find_groups(Dataflow(module)) for name in group.tensors)


@dataclass
class _Group:
    """Tensors whose channels are scaled alike, and the linear operators around them.

    A residual sum joins everything that is added, so that a whole stage of a
    network may be one group.
    """

    producers: list[Node]
    between: list[Node]
    readers: list[Node]

    @property
    def tensors(self) -> list[str]:
        """Names of the tensors that the readers read."""
        read = {reader.operands[0].name for reader in self.readers}
        return [node.name for node in (*self.producers, *self.between) if node.name in read]


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


def _find_groups(graph: Dataflow) -> list[_Group]:
    groups = []
    seen: set[Node] = set()
    for start in graph.nodes:
        if _is_linear(start) and start not in seen:
            group, visited = _grown(start)
            seen |= visited
            if group is not None and group.readers:
                groups.append(group)
    return groups


def _grown(start: Node) -> tuple[_Group | None, set[Node]]:
    """The group of the result of `start`, None if it cannot be scaled; and all nodes met."""
    channels = (static_shape(start.variable) or (0,))[-1]
    group = _Group([], [], [])
    met: set[Node] = set()
    pending = [start]
    valid = True
    while pending:
        node = pending.pop()
        if node in met:
            continue
        met.add(node)
        if _is_linear(node):
            group.producers.append(node)
        elif _scales_along(node, channels):
            group.between.append(node)
            pending.extend(node.operands)
        else:
            valid = False
            continue
        valid = valid and not node.escapes
        for reader in node.readers:
            if _is_linear(reader):
                valid = valid and _reads_channels_last(reader, node)
                group.readers.append(reader)
            else:
                pending.append(reader)
    for nodes in (group.producers, group.between, group.readers):
        nodes.sort(key=lambda item: item.index)
    return (group if valid else None), met


def _reads_channels_last(reader: Node, source: Node) -> bool:
    call: Any = reader.value
    layout = "NHWC" if reader.operator == "relax.matmul" else str(call.attrs.data_layout)
    return bool(call.args[0].same_as(source.variable)) and layout == "NHWC"


def _scales_along(node: Node, channels: int) -> bool:
    """Whether a scale of the operand's channels can be moved behind the operator."""
    call: Any = node.value
    if (static_shape(node.variable) or (0,))[-1] != channels:
        return False
    if node.operator in _HOMOGENEOUS:
        return True
    if node.operator == "relax.mean":
        # Of the axes in front of the channels.
        rank = len(static_shape(call.args[0]) or ())
        axes = call.attrs.axis
        return axes is not None and rank - 1 not in {int(axis) % rank for axis in axes}
    if node.operator == "relax.reshape":
        return (static_shape(call.args[0]) or (0,))[-1] == channels
    if node.operator == "relax.clip":
        return float(call.args[1].value) == 0.0
    if node.operator == "relax.minimum":
        bound = constant_array(call.args[1])
        return bound is not None and _along_channels(bound, channels) is not None
    if node.operator == "relax.add":
        bias = constant_array(call.args[1])
        if bias is None:
            shapes = {static_shape(operand.variable) for operand in node.operands}
            return len(shapes) == 1 and constant_array(call.args[0]) is None
        return _along_channels(bias, channels) is not None
    return False


def _along_channels(array: np.ndarray, channels: int) -> np.ndarray | None:
    """A constant that varies along the last axis only, as a vector of that many channels."""
    if array.size not in (1, channels) or (array.size > 1 and array.shape[-1] != channels):
        return None
    return np.broadcast_to(array.reshape(-1), (channels,))


def _magnitudes(weights: np.ndarray, axis: int) -> np.ndarray:
    """The largest magnitude for each index of an axis, float64."""
    others = tuple(i for i in range(weights.ndim) if i != axis)
    return np.asarray(np.abs(weights).max(others), np.float64)


def _group_scales(group: _Group, observed: np.ndarray | None, floor: float) -> np.ndarray:
    """The s of one group: float64, one for each channel, geometric mean 1."""
    if observed is None:
        produced = [np.asarray(_weights(node)) for node in group.producers]
        ranges = np.max([_magnitudes(w, w.ndim - 1) for w in produced], axis=0)
        balanced = group.readers
    else:
        # A depthwise reader has a scale per channel itself: nothing is to be balanced.
        ranges = np.asarray(observed, np.float64)
        balanced = [node for node in group.readers if not _is_depthwise(node)]
    if ranges.max() <= 0:
        return np.ones_like(ranges)
    scales = np.maximum(ranges, floor * ranges.max())
    read = []
    for node in balanced:
        weights = np.asarray(_weights(node))
        axis = weights.ndim - (1 if _is_depthwise(node) else 2)
        size = _magnitudes(weights, axis)
        if size.max() > 0:
            read.append(size / size.max())
    if read:
        scales = np.sqrt(scales / np.maximum(np.max(read, axis=0), floor))
    return np.asarray(scales / np.exp(np.log(scales).mean()))


class _Scaler(BlockRewriter):
    def __init__(self, module: tvm.IRModule, groups: Sequence[tuple[_Group, np.ndarray]]) -> None:
        super().__init__(module)
        self._produced = {n.variable: s for group, s in groups for n in group.producers}
        self._read = {n.variable: (n, s) for group, s in groups for n in group.readers}
        self._passed = {n.variable: s for group, s in groups for n in group.between}

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
        if name != "relax.clip" and constant_array(call.args[-1]) is None:
            return call
        if name == "relax.clip":
            bound = constant((float(call.args[2].value) / scales).astype(np.float32).reshape(shape))
            return relax.op.minimum(self.emit(relax.op.nn.relu(call.args[0])), bound)
        along = _along_channels(np.asarray(constant_array(call.args[1])), scales.size)
        moved = constant((along / scales).astype(np.float32).reshape(shape))
        return relax.Call(call.op, [call.args[0], moved], call.attrs, call.ty_args)
