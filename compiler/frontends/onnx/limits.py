"""How much a model file may ask for, of memory and of time, on the word of a few bytes.

A dimension of 2^31 takes five bytes in a file. What a file declares is allowed up to sizes that
models have; more has to be asked for with a shape of the user's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from tinsmith.compiler.errors import ModelError, ShapeError
from tinsmith.compiler.frontends.onnx.attributes import MOST_AXES

# Of all inputs together: 128 MiB of float32, a batch of 200 photographs or a scan of 320^3.
_INPUT_ELEMENTS = 1 << 25
# Of one tensor that the model computes, in a model whose shapes all come from the file.
_TENSOR_ELEMENTS = 1 << 26
# No kernel counts further.
_MOST_ELEMENTS = (1 << 31) - 1
# Of all constants that are computed at compile time.
_FOLDED_BYTES = 1 << 29
# With the bodies of functions in place of their calls; the turns of a loop count each.
_NODES = 50_000


@dataclass
class Budget:
    """What one import may still use. `source` begins the messages.

    `tensor_elements` bounds each tensor: see `budget_for`. `constant_elements` bounds those that
    are made at compile time of smaller ones.
    """

    source: str
    tensor_elements: int
    constant_elements: int = 1 << 24
    folded_bytes: int = _FOLDED_BYTES
    _nodes: int = field(default=0, init=False)
    _folded: int = field(default=0, init=False)

    def count_node(self, where: str) -> None:
        """Account for one more node; raises ModelError if there are too many."""
        self._nodes += 1
        if self._nodes > _NODES:
            raise ModelError(
                f"{where}: more than {_NODES} nodes with all loops unrolled; make the loops shorter"
            )

    def check_tensor(self, shape: Sequence[int | None], where: str) -> None:
        """Raise ModelError for a computed tensor of too many axes or elements."""
        check_axes(len(shape), where)
        elements = math.prod(size for size in shape if size is not None)
        if elements > self.tensor_elements:
            raise ModelError(
                f"{where}: has {elements} elements, more than {self.tensor_elements}; if the "
                "model is meant to be that large, give the shapes of its inputs with --shape"
            )

    def check_constant(self, shape: Sequence[int | None], largest: int, where: str) -> None:
        """Raise ModelError for a constant far larger than the `largest` that it is made of."""
        elements = math.prod(size for size in shape if size is not None)
        if elements > max(self.constant_elements, largest):
            raise ModelError(
                f"{where}: is a constant of {elements} elements, more than "
                f"{self.constant_elements}; if that is meant, store it in the model"
            )

    def may_fold(self, nbytes: int) -> bool:
        """Whether a constant of that size may be computed now; it is accounted for if so."""
        if self._folded + nbytes > self.folded_bytes:
            return False
        self._folded += nbytes
        return True


def budget_for(
    model: ModelProto, inputs: Sequence[Sequence[int]], asked: bool, source: str
) -> Budget:
    """The budget of a model whose inputs have these shapes.

    Sizes follow from what the file holds and its inputs have, unless the user has `asked` for
    shapes: then only the limits of the kernels count.
    """
    if asked:
        return Budget(source, _MOST_ELEMENTS, 1 << 27, 4 * _FOLDED_BYTES)
    given = sum(map(math.prod, inputs))
    stored = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
    elements = min(max(_TENSOR_ELEMENTS, 32 * given, 5 * stored), _MOST_ELEMENTS)
    return Budget(source, elements, folded_bytes=max(_FOLDED_BYTES, 8 * stored))


def check_axes(count: int, where: str) -> None:
    """Raise ModelError for a tensor of more axes than any model has."""
    if count > MOST_AXES:
        raise ModelError(f"{where}: has {count} axes, more than {MOST_AXES}")


def check_inputs(shapes: dict[str, tuple[int, ...]], asked: frozenset[str], source: str) -> None:
    """Raise ShapeError for inputs that are larger than a file may say by itself.

    `asked` are the inputs whose shape the user has given.
    """
    total = 0
    for name, shape in shapes.items():
        where = f"{source}: input {name!r}"
        check_axes(len(shape), where)
        elements = math.prod(shape)
        if elements > _MOST_ELEMENTS:
            raise ShapeError(
                f"{where} of shape {list(shape)} has more than {_MOST_ELEMENTS} elements"
            )
        total += 0 if name in asked else elements
        if total > _INPUT_ELEMENTS:
            raise ShapeError(
                f"{where} of shape {list(shape)} makes more than {_INPUT_ELEMENTS} elements of "
                f"inputs; if that is meant, say so with --shape {name}={','.join(map(str, shape))}"
            )


def check_functions(model: ModelProto, source: str) -> None:
    """Raise ModelError for functions that call themselves or unfold into too many nodes."""
    bodies: dict[tuple[str, str], FunctionProto] = {}
    for function in model.functions:
        key = (function.domain, function.name)
        if key in bodies:
            raise ModelError(f"{source}: the function {function.name!r} is defined twice")
        bodies[key] = function
    sizes: dict[tuple[str, str], int] = {}
    open_calls: list[tuple[str, str]] = []

    def size(nodes: Sequence[NodeProto]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            total += unfolded(key) if key in bodies else 1
            for attribute in node.attribute:
                graphs: list[GraphProto] = [attribute.g, *attribute.graphs]
                total += sum(size(graph.node) for graph in graphs)
        if total > _NODES:
            raise ModelError(f"{source}: its functions unfold into more than {_NODES} nodes")
        return total

    def unfolded(key: tuple[str, str]) -> int:
        if key in open_calls:
            raise ModelError(f"{source}: the function {key[1]!r} calls itself")
        if key not in sizes:
            if len(open_calls) > 100:
                raise ModelError(f"{source}: functions call each other more than 100 deep")
            open_calls.append(key)
            sizes[key] = size(bodies[key].node)
            open_calls.pop()
        return sizes[key]

    if bodies:
        size(model.graph.node)
        for key in bodies:
            unfolded(key)
