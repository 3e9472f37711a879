"""Products with weights, and where the tensor is that they are to reproduce."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
import tvm

from tinsmith.passes.graph.dataflow import Dataflow, Node
from tinsmith.passes.graph.tensors import constant_array, integers, static_shape
from tinsmith.passes.graph.windows import Windows


@dataclass(frozen=True)
class Layer:
    """A convolution, or a product with a constant matrix on the right: `name` = data * weights.

    `windows` are those of a convolution (None for a matrix product), with data of `layout`
    and weights of `kernel_layout`. `bias` is the sum with a constant per channel behind it,
    `addend` another tensor that is added then; they are empty if there are none. `target` is
    the last of these tensors: what the layer has to reproduce, together with the addend.
    If all that reads it is an activation that cuts off what lies outside of `bounds`, only what
    is between matters; they are infinite otherwise.
    `data`, `bias`, `addend` and `target` are names of tensors.
    """

    name: str
    data: str
    weights: np.ndarray
    target: str
    bias: str = ""
    bias_shape: tuple[int, ...] = ()
    addend: str = ""
    windows: Windows | None = None
    groups: int = 1
    layout: str = ""
    out_layout: str = ""
    kernel_layout: str = ""
    bounds: tuple[float, float] = (-inf, inf)

    @property
    def is_bounded(self) -> bool:
        """Whether an activation cuts off some of the target."""
        return self.bounds != (-inf, inf)

    @property
    def channel_axis(self) -> int:
        """The axis of output channels in the target."""
        return self.out_layout.index("C") if self.windows is not None else -1

    def matrix(self, weights: np.ndarray) -> np.ndarray:
        """Weights as `[groups, K, OC of a group]`, K in the order of `rows`."""
        if self.windows is None:
            return weights[None]
        axes = [self.kernel_layout.index(letter) for letter in "HWIO"]
        flat = weights.transpose(axes).reshape(
            -1, self.groups, weights.shape[axes[3]] // self.groups
        )
        return flat.transpose(1, 0, 2)

    def unflattened(self, matrix: np.ndarray) -> np.ndarray:
        """Weights in the layout of the layer's own, from what `matrix` answers; float32."""
        if self.windows is None:
            return matrix[0].astype(np.float32)
        axes = [self.kernel_layout.index(letter) for letter in "HWIO"]
        shape = [self.weights.shape[axis] for axis in axes]
        kernel = matrix.transpose(1, 0, 2).reshape(shape)
        return np.ascontiguousarray(kernel.transpose(np.argsort(axes)), np.float32)

    def rows(self, data: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The operand's rows at `places` of the result, `[groups, places, K]`."""
        if self.windows is None:
            return data.reshape(-1, data.shape[-1])[places[:, 0]][None]
        found = self.windows.at(_channels_last(data, self.layout), places)
        taps = int(np.prod(self.windows.kernel))
        split = found.reshape(len(places), taps, self.groups, -1)
        return split.transpose(2, 0, 1, 3).reshape(self.groups, len(places), -1)

    def values(self, result: np.ndarray, places: np.ndarray) -> np.ndarray:
        """What a result (product, target or addend) is at `places`, `[groups, places, OC]`."""
        if self.windows is None:
            found = result.reshape(-1, result.shape[-1])[places[:, 0]]
        else:
            found = _channels_last(result, self.out_layout)[tuple(places.T)]
        return found.reshape(len(places), self.groups, -1).transpose(1, 0, 2)

    def places(self, data: np.ndarray) -> np.ndarray:
        """The positions of a result computed from `data`, int64 `[places, 3 or 1]`."""
        if self.windows is None:
            return np.arange(data.size // data.shape[-1])[:, None]
        return self.windows.places(_channels_last(data, self.layout).shape)


def find_layers(module: tvm.IRModule) -> tuple[Layer, ...]:
    """The layers of `main`, in order.

    Where a sum joins two layers (the ends of a residual block), it is the target of the one
    with more inputs, and the other one reproduces what it computed itself.
    """
    graph = Dataflow(module)
    found = [layer for node in graph.nodes if (layer := _layer(graph, node)) is not None]
    chosen: dict[str, Layer] = {}
    for layer in found:
        if layer.addend:
            other = chosen.get(layer.target)
            if other is None or _inputs(layer) > _inputs(other):
                chosen[layer.target] = layer
    layers = (
        layer
        if not layer.addend or chosen[layer.target] is layer
        else replace(layer, target=layer.bias or layer.name, addend="")
        for layer in found
    )
    return tuple(replace(layer, bounds=_bounds(graph, layer.target)) for layer in layers)


def _bounds(graph: Dataflow, target: str) -> tuple[float, float]:
    """What the only reader of a tensor leaves of its values, if it is a rectifier or a clip."""
    node = graph.named(target)
    if node is None or node.escapes or len(node.readers) != 1:
        return -inf, inf
    reader = node.readers[0]
    call: Any = reader.value
    if reader.operator == "relax.nn.relu":
        return 0.0, inf
    if reader.operator == "relax.nn.relu6":
        return 0.0, 6.0
    if reader.operator == "relax.clip":
        return float(call.args[1].value), float(call.args[2].value)
    return -inf, inf


def _inputs(layer: Layer) -> int:
    return layer.matrix(layer.weights).shape[1]


def _layer(graph: Dataflow, node: Node) -> Layer | None:
    call: Any = node.value
    if node.operator not in ("relax.nn.conv2d", "relax.matmul"):
        return None
    source, weights = graph.node(call.args[0]), constant_array(call.args[1])
    if source is None or weights is None or weights.dtype != np.float32:
        return None
    if node.operator == "relax.matmul":
        if weights.ndim != 2:
            return None
        layer = Layer(node.name, source.name, weights, node.name)
        channels = weights.shape[1]
    else:
        attrs = call.attrs
        kernel_layout = str(attrs.kernel_layout)
        windows = Windows(
            tuple(weights.shape[kernel_layout.index(letter)] for letter in "HW"),
            integers(attrs.strides),
            integers(attrs.padding),
            integers(attrs.dilation),
        )
        layer = Layer(
            node.name,
            source.name,
            weights,
            node.name,
            windows=windows,
            groups=int(attrs.groups),
            layout=str(attrs.data_layout),
            out_layout=str(attrs.out_layout),
            kernel_layout=kernel_layout,
        )
        channels = weights.shape[kernel_layout.index("O")]
    current = _only_sum(node)
    if current is not None:
        bias = _bias(current, node, channels, layer.channel_axis)
        if bias is not None:
            layer = replace(layer, bias=current.name, bias_shape=bias, target=current.name)
            node, current = current, _only_sum(current)
    if current is not None and len(current.operands) == 2:
        other = next(operand for operand in current.operands if operand is not node)
        if static_shape(other.variable) == static_shape(node.variable):
            layer = replace(layer, target=current.name, addend=other.name)
    return layer


def _only_sum(node: Node) -> Node | None:
    """The sum that is all that reads a tensor."""
    if node.escapes or len(node.readers) != 1 or node.readers[0].operator != "relax.add":
        return None
    return node.readers[0]


def _bias(total: Node, product: Node, channels: int, axis: int) -> tuple[int, ...] | None:
    """The shape of the constant that a sum adds to each channel of a product, if it does."""
    call: Any = total.value
    constants = [constant_array(argument) for argument in call.args]
    bias = next((array for array in constants if array is not None), None)
    rank = len(static_shape(product.variable) or ())
    if bias is None or bias.size != channels or bias.ndim > rank:
        return None
    along = (1,) * (rank - bias.ndim) + bias.shape
    return bias.shape if along[axis] == channels else None


def _channels_last(array: np.ndarray, layout: str) -> np.ndarray:
    return array.transpose([layout.index(letter) for letter in "NHWC"])
