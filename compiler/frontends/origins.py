"""Which nodes of an ONNX model are behind what the compiler computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import ModelProto

from tinsmith.compiler.frontends.onnx_importer import variable_name
from tinsmith.compiler.plain_text import plain_line
from tinsmith.passes.graph.dataflow import MADE_UP

# Names in a file may be of any length.
_LONGEST = 200


def nodes_behind(
    computed: Mapping[str, Sequence[str]], model: ModelProto | None
) -> dict[str, tuple[str, ...]]:
    """The names of the nodes of `model` behind each kernel, in order, each once.

    `computed` are the tensors that each kernel computes, by the names that variables have. A node
    without a name is called by its first output. Where no node has such a result (a checkpoint has
    no nodes, a shared result has a number) it stands for itself; names that passes made up are
    left out.
    """
    nodes: dict[str, str] = {}
    for node in model.graph.node if model is not None else ():
        for output in filter(None, node.output):
            nodes.setdefault(variable_name(output), plain_line(node.name or output, _LONGEST))
    return {
        kernel: tuple(
            dict.fromkeys(nodes.get(name, name) for name in names if not MADE_UP.fullmatch(name))
        )
        for kernel, names in computed.items()
    }
