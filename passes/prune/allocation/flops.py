"""The number of floating-point operations as a function of the widths of the groups."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import tvm

from tinsmith.passes.graph.dataflow import Dataflow, Node
from tinsmith.passes.graph.tensors import constant_array, element_count, static_shape
from tinsmith.passes.prune.allocation.cost import Axis, CostModel, Term, axes_of, proportional
from tinsmith.passes.prune.groups import Channels, Groups, Member


def flops_model(module: tvm.IRModule, groups: Groups) -> CostModel:
    """Counts the operations of convolutions and matrix products, two for each multiply-add.

    `groups` are those of `module`. Products whose shape is not known are left out; everything
    else is small beside them, as is custom in the field.
    """
    graph = Dataflow(module)
    weights: dict[str, list[tuple[int, Member]]] = defaultdict(list)
    tensors: dict[str, list[tuple[int, Channels]]] = defaultdict(list)
    for group in groups:
        for member in group.members:
            weights[member.tensor].append((group.index, member))
        for channels in group.tensors:
            tensors[channels.tensor].append((group.index, channels))
    terms: list[Term] = []
    fixed = 0.0
    for node in graph.nodes:
        operations = product_flops(node)
        if not operations:
            continue
        axes = _axes(graph, node, weights[node.name], tensors)
        if axes:
            terms.append(proportional(node.name, axes, operations))
        else:
            fixed += operations
    return CostModel("operations", "FLOPs", tuple(terms), fixed)


def product_flops(node: Node) -> float:
    """Operations of a convolution or matrix product of known shapes; 0 for anything else."""
    call: Any = node.value
    operator = node.operator or ""
    if operator == "relax.matmul":
        left, result = static_shape(call.args[0]), static_shape(node.variable)
        return 2.0 * element_count(result) * left[-1] if left and result is not None else 0.0
    if not operator.startswith("relax.nn.conv"):
        return 0.0
    kernel = static_shape(call.args[1])
    transposed = operator.endswith("_transpose")
    # A transposed convolution multiplies each input, the others make each output.
    pixels = static_shape(call.args[0] if transposed else node.variable)
    layout = str(call.attrs.data_layout if transposed else call.attrs.out_layout)
    if kernel is None or pixels is None:
        return 0.0
    positions = element_count(pixels) / pixels[layout.index("C")]
    return 2.0 * element_count(kernel) * positions


def _axes(
    graph: Dataflow,
    node: Node,
    members: list[tuple[int, Member]],
    tensors: dict[str, list[tuple[int, Channels]]],
) -> tuple[Axis, ...]:
    """The axes of the weights, or, of a product without weights, those of its left operand."""
    call: Any = node.value
    if any(constant_array(argument) is not None for argument in call.args[:2]):
        shape = next(s for a in call.args[1::-1] if constant_array(a) is not None
                     for s in [static_shape(a)])  # fmt: skip
        return axes_of(shape or (), members)
    left = graph.node(call.args[0])
    shape = static_shape(call.args[0])
    return axes_of(shape or (), tensors[left.name]) if left is not None else ()
