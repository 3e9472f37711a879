"""Constant float weights replaced by codes that kernels decompress."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.graph.conditions import PRODUCTS_OF_NUMBERS
from tinsmith.passes.graph.dataflow import Dataflow, Node
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import constant_array, element_type, operator_name, static_shape
from tinsmith.passes.quantize.weight_compression import can_be_scaled
from tinsmith.targets.compressed_weights import CompressedWeights, decompress_call

_PRODUCTS = ("relax.nn.conv2d", "relax.matmul")


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product by constant weights.

    `name` is that of its result and `data` that of the tensor it multiplies (as `Dataflow`
    names them); `reason` says why its weights stay float, and is empty if they need not.
    """

    name: str
    operator: str
    data: str
    call: Any
    weights: np.ndarray
    reason: str = ""


def products(
    module: tvm.IRModule, keep_float: Collection[str] = (), smallest: int = 0
) -> tuple[Product, ...]:
    """All products of `main` by constant weights, in order, and which of them can be compressed.

    `module` is a float graph after the graph passes. Weights of fewer than `smallest` elements
    and those of the operators named in `keep_float` stay float.
    """
    graph = Dataflow(module)
    found = []
    for node in graph.nodes:
        if node.operator not in _PRODUCTS:
            continue
        call: Any = node.value
        weights, data = constant_array(call.args[1]), graph.node(call.args[0])
        if weights is None or data is None or weights.dtype != np.float32:
            continue
        reason = _why_float(node, call, weights)
        if node.name in keep_float:
            reason = "kept in float on request"
        elif not reason and weights.size < smallest:
            reason = f"fewer than {smallest} weights"
        found.append(Product(node.name, node.operator, data.name, call, weights, reason))
    return tuple(found)


def is_compressible(call: Any, weights: np.ndarray) -> bool:
    """Whether the kernel of a product can decompress its weights."""
    return not _no_kernel(call, weights)


def _why_float(node: Node, call: Any, weights: np.ndarray) -> str:
    reason = _no_kernel(call, weights)
    if not reason and not can_be_scaled(weights):
        return "its weights do not fit the range of float16 scales"
    return reason


def _no_kernel(call: Any, weights: np.ndarray) -> str:
    shape = static_shape(call.args[0])
    if shape is None or len(shape) < 2 or element_type(call) != "float32":
        return "its data have no static shape or are no floats"
    if operator_name(call) == "relax.matmul":
        if weights.ndim != 2:
            return "its weights are no matrix"
    elif str(call.attrs.kernel_layout) != "HWIO" or str(call.attrs.out_layout) != "NHWC":
        return f"its weights are in {call.attrs.kernel_layout}"
    elif weights.shape[2] == 1 and int(call.attrs.groups) > 1:
        return "a depthwise convolution has too few weights to matter"
    return ""


@tvm.transform.module_pass(opt_level=0, name="CompressWeights")
class CompressWeights:
    """Replace the weights of products by codes and scales.

    Before::

        y: (1, 8, 8, 64) = conv2d(x: (1, 8, 8, 32), const w: (3, 3, 32, 64) float32)

    After::

        d: (3, 3, 32, 64) float32 = tinsmith.decompress(const codes: (3, 3, 32, 64) uint8,
                                                        const scales: (9, 64) float16,
                                                        const levels: (16,) float32)
        y: (1, 8, 8, 64) = conv2d(x, d)

    `weights` maps the names of products (`products`) to what replaces their weights. Nothing
    computes the call by itself: the kernels of the products read codes and scales, and
    folding leaves it alone.

    Raises ValueError for a name that no product of the graph has.
    """

    requires = (PRODUCTS_OF_NUMBERS,)

    def __init__(self, weights: Mapping[str, CompressedWeights]) -> None:
        self.weights = dict(weights)

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        known = {product.name for product in products(module)}
        for name in self.weights:
            if name not in known:
                raise ValueError(f"no product by constant weights is named {name}")
        return _Compressor(module, self.weights).run()


class _Compressor(BlockRewriter):
    def __init__(self, module: tvm.IRModule, weights: Mapping[str, CompressedWeights]) -> None:
        super().__init__(module)
        graph = Dataflow(module)
        named = {name: graph.named(name) for name in weights}
        self._weights = {
            node.variable: weights[name] for name, node in named.items() if node is not None
        }

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        if operator_name(value) not in _PRODUCTS or variable not in self._weights:
            return value
        call: Any = value
        stored = self.emit(decompress_call(self._weights[variable]))
        return relax.Call(call.op, [call.args[0], stored], call.attrs, call.ty_args)
