"""A graph as producers and consumers: names of tensors, readers, and where paths join again."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

import tvm
from tvm import relax

from tinsmith.passes.graph.fused_groups import unique_names
from tinsmith.passes.graph.rewriter import variables_in
from tinsmith.passes.graph.tensors import operator_name


@dataclass
class Node:
    """One binding of `main`, or one parameter (whose `value` is None).

    `readers` are the nodes that read it, in order and once each; `escapes` tells
    that the tensor is a result of the function or read outside dataflow blocks.
    """

    index: int
    name: str
    variable: relax.Var
    value: relax.Expr | None
    operands: list[Node] = field(default_factory=list)
    readers: list[Node] = field(default_factory=list)
    escapes: bool = False

    @property
    def operator(self) -> str | None:
        """`"relax.add"` for a call of that operator."""
        return operator_name(self.value)

    def __hash__(self) -> int:
        return self.index

    def __eq__(self, other: object) -> bool:
        return self is other


class Dataflow:
    """The nodes of `main` of a module, in order; raises ValueError without such a function.

    Every tensor gets a name, by `unique_names`. Names are the same for every module
    with the same bindings, so that statistics of one can be used for the other.
    """

    def __init__(self, module: tvm.IRModule) -> None:
        function = module["main"]
        self.nodes: list[Node] = []
        self._of: dict[relax.Var, Node] = {}
        if not isinstance(function, relax.Function) or not isinstance(function.body, relax.SeqExpr):
            raise ValueError("the module has no Relax function `main` with a body of bindings")
        names = unique_names(function)
        for parameter in function.params:
            self._add(parameter, None, names[parameter])
        for block in function.body.blocks:
            inside = isinstance(block, relax.DataflowBlock)
            for binding in block.bindings:
                value = binding.value if isinstance(binding, relax.VarBinding) else None
                node = self._add(binding.var, value, names[binding.var])
                # What is bound outside, or matched to a shape, is nothing a pass can move.
                node.escapes = not inside or value is None
                for operand in dict.fromkeys(variables_in(value) if value is not None else ()):
                    if operand in self._of:
                        source = self._of[operand]
                        node.operands.append(source)
                        source.readers.append(node)
                        source.escapes = source.escapes or not inside
                if inside and not isinstance(binding.var, relax.DataflowVar):
                    node.escapes = True
                if isinstance(value, relax.Tuple):
                    for source in node.operands:
                        source.escapes = True
        for variable in variables_in(function.body.body):
            if variable in self._of:
                self._of[variable].escapes = True
        self._post_dominators: list[Node | None] | None = None

    def _add(self, variable: relax.Var, value: relax.Expr | None, name: str) -> Node:
        node = Node(len(self.nodes), name, variable, value)
        self.nodes.append(node)
        self._of[variable] = node
        return node

    def node(self, variable: relax.Expr | None) -> Node | None:
        """The node of a variable of the module; None for other expressions."""
        return self._of.get(variable) if isinstance(variable, relax.Var) else None

    def named(self, name: str) -> Node | None:
        """The node of the tensor of that name."""
        return next((node for node in self.nodes if node.name == name), None)

    def join(self, node: Node) -> Node | None:
        """The first node through which everything computed from `node` passes.

        None if paths end apart or the tensor escapes.
        """
        if self._post_dominators is None:
            self._post_dominators = self._find_post_dominators()
        return self._post_dominators[node.index]

    def between(self, node: Node, join: Node) -> list[Node]:
        """The nodes on paths from `node` to `join`, `join` included."""
        seen: dict[Node, None] = {}
        pending = list(node.readers)
        while pending:
            current = pending.pop()
            if current in seen:
                continue
            seen[current] = None
            if current is not join:
                pending.extend(current.readers)
        return sorted(seen, key=lambda item: item.index)

    def _find_post_dominators(self) -> list[Node | None]:
        """Lowest common ancestors in the tree of post-dominators, from the end."""
        parent: list[Node | None] = [None] * len(self.nodes)
        depth = [0] * len(self.nodes)
        for node in reversed(self.nodes):
            if node.escapes or not node.readers:
                continue
            common: Node | None = node.readers[0]
            for reader in node.readers[1:]:
                common = self._common(common, reader, parent, depth)
            parent[node.index] = common
            depth[node.index] = 0 if common is None else depth[common.index] + 1
        return parent

    @staticmethod
    def _common(
        first: Node | None, second: Node | None, parent: Sequence[Node | None], depth: list[int]
    ) -> Node | None:
        while first is not second:
            if first is None or second is None:
                return None
            if depth[first.index] >= depth[second.index]:
                first = parent[first.index]
            else:
                second = parent[second.index]
        return first


def stored_behind(node: Node, stored: Container[str]) -> Node:
    """The first of the `stored` tensors from `node` on, or the last before the graph branches.

    The results of the function and the parts of a split, which are tuples, are no tensors.
    """
    while node.name not in stored and len(node.readers) == 1:
        reader = node.readers[0]
        if not isinstance(reader.variable.ty, relax.TensorType):
            break
        node = reader
    return node


# Names that passes and converters make up.
MADE_UP = re.compile(r"(t|lv|gv)\d*(\.\d+)?")


def model_name(node: Node) -> str:
    """The name in the model's file of the first tensor from `node` on that has one.

    The product of a convolution has none where its bias is added: the sum has it. Empty if
    the graph branches before.
    """
    current = node
    while MADE_UP.fullmatch(current.name):
        if len(current.readers) != 1:
            return ""
        current = current.readers[0]
    return current.name
