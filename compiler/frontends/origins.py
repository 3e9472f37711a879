"""Which nodes of a model are behind what the compiler computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tinsmith.passes.graph.dataflow import MADE_UP


def nodes_behind(
    computed: Mapping[str, Sequence[str]], node_names: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """The names of the model's nodes behind each kernel, in order, each once.

    `computed` are the tensors that each kernel computes, by the names that variables have, and
    `node_names` those of `ImportedModel`. A variable without a node (a checkpoint has no nodes, a
    shared result has a number) stands for itself; names that passes made up are left out.
    """
    return {
        kernel: tuple(
            dict.fromkeys(
                node_names.get(name, name) for name in names if not MADE_UP.fullmatch(name)
            )
        )
        for kernel, names in computed.items()
    }
