"""Which operators of a float graph compute in a shorter float, and what is stored in it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm

from tinsmith.passes.graph.dataflow import Dataflow, Node
from tinsmith.passes.graph.tensors import constant_array, element_count, element_type, static_shape
from tinsmith.passes.quantize.fusion_preview import is_elementwise, kept_in_memory
from tinsmith.passes.quantize.placement import FloatOperator

# Their kernels multiply in the shorter float and add in float32.
PRODUCTS = frozenset({"relax.nn.conv2d", "relax.matmul"})
# Move, select or average elements: run on the stored values.
ON_STORED = frozenset(
    {
        "relax.broadcast_to",
        "relax.concat",
        "relax.nn.avg_pool2d",
        "relax.nn.max_pool2d",
        "relax.permute_dims",
        "relax.reshape",
        "relax.split",
        "relax.strided_slice",
        "relax.take",
    }
)
# Read stored values and compute in float32 within one kernel. Normalisations are none of them,
# whole or taken apart: what enters them, and their moments above all, stays float32.
_IN_REGISTERS = frozenset(
    {
        "relax.image.resize2d",
        "relax.max",
        "relax.mean",
        "relax.nn.adaptive_avg_pool2d",
    }
)


@dataclass(frozen=True)
class PrecisionPlacement:
    """Names of results: `operators` compute in the shorter float, `stored` are kept in it.

    `float_operators` are the products that stay in float32, and why.
    """

    operators: tuple[str, ...]
    stored: frozenset[str]
    float_operators: tuple[FloatOperator, ...]


def place_precision(
    module: tvm.IRModule,
    only: Collection[str] | None = None,
    keep_float: Collection[str] = (),
) -> PrecisionPlacement:
    """Decide what of `main`, a graph after the graph passes, uses a shorter float.

    Convolutions and matrix products with constant weights compute in it, all of them or
    those whose results `only` names, except those that `keep_float` names. A tensor is
    stored in it if fusion leaves it in memory and one of those operators reads it, directly
    or through operators that move elements or compute in registers. What is spread over a
    larger tensor on that way (a moment, the gate of a channel) stays float32.
    """
    graph = Dataflow(module)
    chosen: list[Node] = []
    reasons: list[FloatOperator] = []
    for node in graph.nodes:
        if node.operator not in PRODUCTS or (only is not None and node.name not in only):
            continue
        reason = "kept in float on request" if node.name in keep_float else _why_float(graph, node)
        if reason is None:
            chosen.append(node)
        else:
            operator = str(node.operator).removeprefix("relax.")
            reasons.append(FloatOperator(node.name, operator, reason))
    in_memory = kept_in_memory(graph)
    stored = {
        node.name
        for node in _wanted(graph, set(chosen))
        if node in in_memory and element_type(node.variable) == "float32"
    }
    return PrecisionPlacement(
        tuple(node.name for node in chosen), frozenset(stored), tuple(reasons)
    )


def _why_float(graph: Dataflow, node: Node) -> str | None:
    """None if there is a kernel that multiplies pairs of a shorter float."""
    call: Any = node.value
    data, weights = call.args[0], constant_array(call.args[1])
    shape = static_shape(data)
    if shape is None or element_type(data) != "float32":
        return f"its operand is {element_type(data)} or has no static shape"
    if graph.node(data) is None:
        return "its left operand is constant"
    if weights is None:
        return "its right operand is not constant"
    if not np.isfinite(weights).all():
        return "its weights are not finite"
    if node.operator == "relax.matmul":
        return None if weights.ndim == 2 and len(shape) > 1 else "its right operand is no matrix"
    if weights.ndim != 4 or str(call.attrs.kernel_layout) != "HWIO":
        return f"its weights are in {call.attrs.kernel_layout}"
    groups, channels = int(call.attrs.groups), weights.shape[2]
    depthwise = channels == 1 and groups == weights.shape[3] and call.attrs.data_layout == "NHWC"
    if groups > 1 and channels % 2 and not depthwise:
        return "its groups have an odd number of channels"
    return None


def is_split_item(node: Node) -> bool:
    """Whether the node takes one tensor out of a split."""
    return (
        node.operator is None
        and len(node.operands) == 1
        and node.operands[0].operator == "relax.split"
    )


def _wanted(graph: Dataflow, chosen: set[Node]) -> set[Node]:
    """The tensors of which a chosen operator reads something, through registers or not."""
    wanted: set[Node] = set()
    for node in reversed(graph.nodes):
        if element_type(node.variable) != "float32" and node.operator != "relax.split":
            continue
        for reader in node.readers:
            passes = (
                (is_elementwise(reader) and not _is_spread(node, reader))
                or reader.operator in ON_STORED
                or reader.operator in _IN_REGISTERS
                or is_split_item(reader)
            )
            if reader in chosen or (passes and reader in wanted):
                wanted.add(node)
    return wanted


def _is_spread(node: Node, reader: Node) -> bool:
    """Whether an elementwise reader uses elements of `node` several times."""
    small, large = static_shape(node.variable), static_shape(reader.variable)
    if small is None or large is None:
        return True
    return element_count(small) < element_count(large)
