"""A Relax graph that PyTorch runs, differentiates and trains."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tvm
from torch import Tensor
from tvm import relax
from tvm.ir import GenericConst

from tinsmith.passes.graph.dataflow import Dataflow, Node
from tinsmith.passes.graph.tensors import constant_array, static_shape
from tinsmith.passes.prune.autograd.operators import OPERATORS
from tinsmith.passes.prune.constants import constant_reads, replace_constants

# Which operands are weights, biases or factors; others (statistics, bounds) stay as they are.
_TRAINED: dict[str, tuple[int, ...]] = {
    **{f"relax.nn.conv{rank}d": (1,) for rank in (1, 2, 3)},
    **{f"relax.nn.conv{rank}d_transpose": (1,) for rank in (1, 2, 3)},
    "relax.matmul": (0, 1),
    "relax.add": (0, 1),
    "relax.multiply": (0, 1),
    "relax.nn.prelu": (1,),
    "relax.nn.rms_norm": (1,),
    **{f"relax.nn.{kind}_norm": (1, 2) for kind in ("batch", "layer", "group", "instance")},
}
_CONVOLUTIONS = frozenset(name for name in _TRAINED if name.startswith("relax.nn.conv"))
# Compared where one sample after the other is computed and all together.
_SAME = 1e-3


class NoCounterpartError(ValueError):
    """An operator, named with its tensor, that PyTorch has no counterpart of here."""


@dataclass(frozen=True)
class _Step:
    """One binding: where its operands are (a tensor, or the number of a constant)."""

    node: Node
    function: Callable[..., Any]
    operands: tuple[Node | int, ...]
    last_reads: tuple[Node, ...]


class TorchGraph(torch.nn.Module):
    """`main` of a module in PyTorch. Its parameters are weights, biases and factors.

    Takes batches of any number of samples; a sample is what the graph takes. A graph
    that does not treat rows alike computes samples one by one (`joint` tells).
    Batch normalisations keep their statistics. Weights of 4 axes have channels last in memory.
    """

    def __init__(self, module: tvm.IRModule) -> None:
        """Raises NoCounterpartError, and ValueError for a module without a Relax `main`."""
        super().__init__()
        self.module = module
        self._graph = Dataflow(module)
        constants = list(constant_reads(module))
        self._numbers = {value: number for number, value in enumerate(constants)}
        trained = _trained(self._graph)
        for number, value in enumerate(constants):
            array = constant_array(value)
            if array is None:
                raise NoCounterpartError(f"a constant of {value.ty.dtype} has no counterpart")
            tensor = _channels_last(torch.tensor(array))
            if value in trained:
                self.register_parameter(f"c{number}", torch.nn.Parameter(tensor))
            else:
                self.register_buffer(f"c{number}", tensor, persistent=False)
        parameters = module["main"].params
        self._inputs = self._graph.nodes[: len(parameters)]
        self.batch = next((shape[0] for node in self._inputs if (shape := _shape(node))), 1)
        self._results, self._steps = self._converted()
        self.joint = True

    def forward(self, *inputs: Tensor, watch: Collection[str] = ()) -> dict[str, Tensor]:
        """The results by name (as `Dataflow` gives them), in order, and the tensors to `watch`.

        Inputs have the samples behind each other along the first axis.
        """
        count = inputs[0].shape[0] // self.batch if inputs and inputs[0].ndim else 1
        if self.joint or count == 1:
            return self._run(inputs, watch)
        parts = zip(*(torch.split(x, x.shape[0] // count) for x in inputs), strict=True)
        found = [self._run(part, watch) for part in parts]
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}

    @property
    def result_names(self) -> tuple[str, ...]:
        """The names of the results, in order."""
        return tuple(node.name for node in self._results)

    def find_joint(self, samples: Sequence[Sequence[np.ndarray]]) -> None:
        """Find out whether rows are treated alike: whether two samples can be run together."""
        stacked = [torch.tensor(np.concatenate(arrays)) for arrays in zip(*samples, strict=True)]
        with torch.no_grad():
            self.joint = False
            apart = self(*stacked)
            self.joint = True
            try:
                together = self(*stacked)
            except RuntimeError:
                self.joint = False
                return
            self.joint = all(
                tensor.shape == apart[name].shape
                and torch.allclose(tensor, apart[name], _SAME, _SAME * _scale(apart[name]))
                for name, tensor in together.items()
            )

    def trained_module(self) -> tvm.IRModule:
        """The module with the parameters as they are now in place of its constants."""
        values = {
            int(name[1:]): np.ascontiguousarray(parameter.detach().numpy())
            for name, parameter in self.named_parameters()
        }
        return replace_constants(self.module, values)

    def gradients(self) -> Mapping[int, np.ndarray]:
        """The gradients of the parameters that have one, by the constant's number."""
        return {
            int(name[1:]): parameter.grad.numpy()
            for name, parameter in self.named_parameters()
            if parameter.grad is not None
        }

    def _run(self, inputs: Sequence[Tensor], watch: Collection[str]) -> dict[str, Tensor]:
        tensors: dict[Node, Any] = {
            node: _channels_last(x) for node, x in zip(self._inputs, inputs, strict=True)
        }
        watched = {node.name: tensors[node] for node in self._inputs if node.name in watch}
        for step in self._steps:
            operands = [
                tensors[operand] if isinstance(operand, Node) else getattr(self, f"c{operand}")
                for operand in step.operands
            ]
            tensors[step.node] = step.function(*operands)
            if step.node.name in watch:
                watched[step.node.name] = tensors[step.node]
            for node in step.last_reads:
                del tensors[node]
        return {**{node.name: tensors[node] for node in self._results}, **watched}

    def _converted(self) -> tuple[tuple[Node, ...], tuple[_Step, ...]]:
        nodes = self._graph.nodes[len(self._inputs) :]
        function = self.module["main"]
        body = function.body.body
        ends = list(body.fields) if isinstance(body, relax.Tuple) else [body]
        results = [node for end in ends if (node := self._graph.node(end)) is not None]
        if len(results) == 1 and isinstance(results[0].value, relax.Tuple):
            made = results[0]
            fields = results[0].value.fields
            results = [node for f in fields if (node := self._graph.node(f)) is not None]
            nodes = [node for node in nodes if node is not made]
        biases = _biases(nodes)
        fused = {product: node for node, (product, _) in biases.items()}
        drafts: list[tuple[Node, Callable[..., Any], tuple[Node | int, ...]]] = []
        for node in nodes:
            if node in fused:
                continue  # computed where its bias is added
            product, bias = biases.get(node, (None, None))
            if product is None or bias is None:
                drafts.append((node, *self._draft(node)))
            else:
                convolve, operands = self._draft(product)
                drafts.append((node, _with_bias(convolve), (*operands, self._numbers[bias])))
        last: dict[Node, int] = {}
        for position, (node, _, operands) in enumerate(drafts):
            last[node] = position
            last.update({operand: position for operand in operands if isinstance(operand, Node)})
        ending: dict[int, list[Node]] = {}
        for node, position in last.items():
            if node not in results:
                ending.setdefault(position, []).append(node)
        return tuple(results), tuple(
            _Step(*draft, tuple(ending.get(position, ()))) for position, draft in enumerate(drafts)
        )

    def _draft(self, node: Node) -> tuple[Callable[..., Any], tuple[Node | int, ...]]:
        value: Any = node.value
        if isinstance(value, relax.TupleGetItem):
            index = int(value.index)
            return (lambda members: members[index]), self._operands([value.tuple_value])
        if isinstance(value, relax.Var | GenericConst):
            return (lambda x: x), self._operands([value])
        if isinstance(value, relax.Tuple):
            return (lambda *members: members), self._operands(value.fields)
        rule = OPERATORS.get(str(node.operator))
        if rule is None:
            what = node.operator or type(value).__name__
            raise NoCounterpartError(f"{what} ({node.name}) has no counterpart in PyTorch")
        try:
            function = rule(value)
        except ValueError as error:
            raise NoCounterpartError(f"{node.operator} ({node.name}): {error}") from error
        return function, self._operands(_tensors(value.args))

    def _operands(self, expressions: Sequence[relax.Expr]) -> tuple[Node | int, ...]:
        found: list[Node | int] = []
        for expression in expressions:
            node = self._graph.node(expression)
            found.append(self._numbers[expression] if node is None else node)
        return tuple(found)


def scores_name(module: tvm.IRModule) -> str:
    """The tensor whose softmax is the first result, or the first result itself."""
    graph = Dataflow(module)
    body = module["main"].body.body
    node = graph.node(body.fields[0] if isinstance(body, relax.Tuple) else body)
    while node is not None and isinstance(node.value, relax.Tuple | relax.Var):
        inner = node.value.fields[0] if isinstance(node.value, relax.Tuple) else node.value
        node = graph.node(inner)
    if node is not None and node.operator in ("relax.nn.softmax", "relax.nn.log_softmax"):
        value: Any = node.value
        node = graph.node(value.args[0]) or node
    return "" if node is None else node.name


def _trained(graph: Dataflow) -> set[GenericConst]:
    """The constants that training changes: float32 ones of several elements."""
    found: set[GenericConst] = set()
    for node in graph.nodes:
        value: Any = node.value
        for position in _TRAINED.get(str(node.operator), ()):
            array = constant_array(value.args[position])
            if array is not None and array.dtype == np.float32 and array.size > 1:
                found.add(value.args[position])
    return found


def _biases(nodes: Sequence[Node]) -> dict[Node, tuple[Node, GenericConst]]:
    """Sums that only add a constant to each channel of a convolution: that, and the constant."""
    found: dict[Node, tuple[Node, GenericConst]] = {}
    for node in nodes:
        if node.operator != "relax.add" or len(node.operands) != 1:
            continue
        product, call = node.operands[0], node.value
        arguments: Any = call.args if isinstance(call, relax.Call) else ()
        bias = next((a for a in arguments if isinstance(a, GenericConst)), None)
        shape, rank = _shape(product), len(_shape(product))
        array = constant_array(bias)
        if (
            product.operator in _CONVOLUTIONS
            and len(product.readers) == 1
            and not product.escapes
            and array is not None
            and (1,) * (rank - array.ndim) + array.shape == (1, shape[1], *(1,) * (rank - 2))
        ):
            found[node] = product, bias
    return found


def _with_bias(convolve: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, weight, bias: convolve(x, weight, bias.reshape(-1))


def _tensors(arguments: Sequence[relax.Expr]) -> list[relax.Expr]:
    """The tensors among a call's arguments, members of tuples one by one."""
    found: list[relax.Expr] = []
    for argument in arguments:
        if isinstance(argument, relax.Tuple):
            found += [f for f in argument.fields if isinstance(f, relax.Var | GenericConst)]
        elif isinstance(argument, relax.Var | GenericConst):
            found.append(argument)
    return found


def _shape(node: Node) -> tuple[int, ...]:
    return static_shape(node.variable) or ()


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _scale(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
