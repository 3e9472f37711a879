"""What fusion will leave in memory, known before there are kernels."""

from __future__ import annotations

from tinsmith.passes.graph.dataflow import Dataflow, Node
from tinsmith.passes.graph.permutation_rules import BROADCASTING, ELEMENTWISE
from tinsmith.passes.graph.tensors import element_count, static_shape

# Kernels that take elementwise operators behind them into their epilogue.
_WITH_EPILOGUE = frozenset({"relax.nn.conv2d", "relax.matmul"})
_CONVERSIONS = frozenset({"relax.quantize", "relax.dequantize"})


def is_elementwise(node: Node) -> bool:
    """Whether the node is an operator that fusion joins with its neighbours."""
    operator = node.operator
    return operator in ELEMENTWISE or operator in BROADCASTING or operator in _CONVERSIONS


def kept_in_memory(graph: Dataflow) -> set[Node]:
    """The tensors that `tinsmith.passes.graph.Fuse` will leave between kernels.

    A convolution or matrix product takes the elementwise operators behind it, as
    long as everything computed from a result passes through one operator. Where
    two of them are added, the first one takes the addition. A small tensor that
    is spread over a larger one is kept.
    """
    in_memory: set[Node] = set()
    anchor: dict[Node, Node] = {}
    for node in graph.nodes:
        own = node if node.operator in _WITH_EPILOGUE else anchor.get(node)
        join = graph.join(node)
        fusible = own is not None or is_elementwise(node)
        path = [] if join is None or not fusible else graph.between(node, join)
        if not path or not all(
            is_elementwise(step) and anchor.get(step, own) is own and not _is_repeated(node, step)
            for step in path
        ):
            in_memory.add(node)
        elif own is not None:
            for step in path:
                anchor[step] = own
    return in_memory


def _is_repeated(node: Node, reader: Node) -> bool:
    """Whether a small tensor is spread over a larger result, which fusion does not follow."""
    small, large = static_shape(node.variable), static_shape(reader.variable)
    if small is None or large is None:
        return True
    return 2 * element_count(small) <= element_count(large)
