"""What a module in the VM form calls besides its kernels: loops, branches, operators without shape.

| function | arguments |
|---|---|
| `tinsmith.evaluate` | an ONNX model of one node in base64, the node's inputs |
| `tinsmith.loop` | a description in JSON; number of turns and condition if there are any, states, and what the body reads from around it |
| `tinsmith.scan` | a description in JSON; states, the tensors that are sliced, and the same |
| `tinsmith.branch` | a description in JSON, the condition, what the branches read from around them |
| `tinsmith.declared` | a tensor, which it gives back |

Loops and branches run functions of the virtual machine that called them, which `running` names.
"""  # noqa: E501

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import tvm_ffi

from tinsmith.compiler.errors import TinsmithError
from tinsmith.compiler.module.vm_operators import OPERATORS
from tinsmith.compiler.module.vm_rearrangement import Operator
from tinsmith.compiler.module.vm_tensors import array_of, tensor_of


class Machine(Protocol):
    """A virtual machine: functions by name."""

    def __getitem__(self, name: str) -> Any: ...


_RUNNING = threading.local()
# Letters of a foreign message that are shown.
_REASON = 160
_REMEMBERED = 4096
# A loop that has taken so many turns is taken for one that never ends.
MOST_TURNS = 1_000_000


@contextmanager
def running(machine: Machine) -> Iterator[None]:
    """For as long as this thread runs a function of `machine`."""
    outer = getattr(_RUNNING, "machine", None)
    _RUNNING.machine = machine
    try:
        # Infinities and NaNs are results like others.
        with np.errstate(all="ignore"):
            yield
    finally:
        _RUNNING.machine = outer


def register() -> None:
    """Make the functions known to TVM's runtime; again does nothing."""
    for name, function in _FUNCTIONS.items():
        if tvm_ffi.get_global_func(name, allow_missing=True) is None:
            tvm_ffi.register_global_func(name, function)


def call_label(function: str, arguments: Sequence[Any]) -> str:
    """How a report names a call: an operator that is evaluated by its own name."""
    if function != "tinsmith.evaluate":
        return function
    import onnx

    model = onnx.ModelProto.FromString(base64.b64decode(str(arguments[0])))
    return str(model.graph.node[0].op_type)


def _evaluate(text: str, *inputs: Any) -> Any:
    results = _operator(text)([array_of(value) for value in inputs])
    return _results([tensor_of(result) for result in results])


@lru_cache(_REMEMBERED)
def _operator(text: str) -> Operator:
    import onnx

    return evaluator_of(onnx.ModelProto.FromString(base64.b64decode(text)))


def evaluator_of(model: Any) -> Operator:
    """What evaluates the node of a model: a function of our own, else that of the onnx package."""
    import onnx

    node = model.graph.node[0]
    names = [value.name for value in model.graph.input]
    opset = model.opset_import[0].version
    make = OPERATORS.get(node.op_type)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    own = None if make is None else make(attributes, len(node.output), opset)
    if own is not None:
        places = [names.index(name) if name else None for name in node.input]
        wanted = [i for i, name in enumerate(node.output) if name]

        def evaluate(inputs: Sequence[Any]) -> Sequence[Any]:
            try:
                results = own([None if place is None else inputs[place] for place in places])
            except Exception as error:
                raise _failure(node, error) from error
            return [results[i] for i in wanted]

        return evaluate
    from tinsmith.compiler.module.onnx_loop import reference_evaluator

    evaluator = reference_evaluator(model)

    def refer(inputs: Sequence[Any]) -> Sequence[Any]:
        try:
            return evaluator.run(None, dict(zip(names, inputs, strict=True)))
        except Exception as error:
            raise _failure(node, error) from error

    return refer


def _failure(node: Any, error: Exception) -> TinsmithError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    label = node.name or next(iter(node.output), "")
    return TinsmithError(
        f"node {label!r} ({node.op_type}) cannot be evaluated on these data: {lines[-1][:_REASON]}"
    )


def _loop(text: str, *arguments: Any) -> Any:
    spec = _description(text)
    bodies = _bodies(spec)
    rest = list(arguments)
    limit = int(array_of(rest.pop(0)).reshape(-1)[0]) if spec["limited"] else None
    goes_on = bool(array_of(rest.pop(0)).reshape(-1)[0]) if spec["conditional"] else True
    count = spec["states"]
    states, captured = rest[:count], rest[count:]
    scanned: list[list[np.ndarray]] = [[] for _ in spec["scans"]]
    counter_shape, condition_shape = ((1,) * rank for rank in spec["ranks"])
    turn = 0
    while goes_on and (limit is None or turn < limit):
        if turn == MOST_TURNS:
            raise TinsmithError(f"a loop has not ended after {MOST_TURNS:,} turns")
        counter = tensor_of(np.full(counter_shape, turn, np.int64))
        condition, *results = next(bodies)(
            counter, tensor_of(np.ones(condition_shape, bool)), *states, *captured
        )
        # A body without a condition of its own says that it goes on.
        goes_on = bool(array_of(condition).reshape(-1)[0])
        states = results[:count]
        for rows, value in zip(scanned, results[count:], strict=True):
            rows.append(array_of(value).copy())
        turn += 1
    stacks = [_stacked(rows, scan) for rows, scan in zip(scanned, spec["scans"], strict=True)]
    return _results([*states, *(tensor_of(stack) for stack in stacks)])


def _scan(text: str, *arguments: Any) -> Any:
    spec = _description(text)
    bodies = _bodies(spec)
    count, axes = spec["states"], spec["axes"]
    states, captured = list(arguments[:count]), arguments[count + len(axes) :]
    sources = [
        np.flip(array_of(value), axis) if backward else array_of(value)
        for value, axis, backward in zip(
            arguments[count : count + len(axes)], axes, spec["backward"], strict=True
        )
    ]
    lengths = {source.shape[axis] for source, axis in zip(sources, axes, strict=True)}
    if len(lengths) != 1:
        raise TinsmithError(f"a Scan over inputs of different lengths: {sorted(lengths)}")
    scanned: list[list[np.ndarray]] = [[] for _ in spec["scans"]]
    for turn in range(lengths.pop()):
        slices = [
            tensor_of(np.take(source, turn, axis))
            for source, axis in zip(sources, axes, strict=True)
        ]
        results = list(next(bodies)(*states, *slices, *captured))
        states = results[:count]
        for rows, value in zip(scanned, results[count:], strict=True):
            rows.append(array_of(value).copy())
    stacks = [
        _stacked(rows[::-1] if backward else rows, scan, axis)
        for rows, scan, axis, backward in zip(
            scanned, spec["scans"], spec["scan_axes"], spec["scan_backward"], strict=True
        )
    ]
    return _results([*states, *(tensor_of(stack) for stack in stacks)])


def _bodies(spec: dict[str, Any]) -> Iterator[Any]:
    """The functions of the turns: the first one may differ."""
    machine = _RUNNING.machine
    if spec["first"] is not None:
        yield machine[spec["first"]]
    body = machine[spec["body"]]
    while True:
        yield body


def _stacked(rows: Sequence[np.ndarray], scan: dict[str, Any], axis: int = 0) -> np.ndarray:
    if rows:
        return np.stack(rows, axis)
    if scan["shape"] is None:
        raise TinsmithError("a loop without a turn stacks up rows of a rank that is not known")
    shape = list(scan["shape"])
    shape.insert(axis % (len(shape) + 1), 0)
    return np.empty(shape, scan["dtype"])


def _branch(text: str, condition: Any, *captured: Any) -> Any:
    spec = _description(text)
    taken = "then" if bool(array_of(condition).reshape(-1)[0]) else "else"
    return _results(_RUNNING.machine[spec[taken]](*captured))


def _declared(value: Any) -> Any:
    """An output of a rank that data decide, as it is, though its file declares one."""
    return value


def _results(values: Sequence[Any]) -> Any:
    """A graph takes one result as itself, several as a tuple."""
    return values[0] if len(values) == 1 else values


@lru_cache(_REMEMBERED)
def _description(text: str) -> dict[str, Any]:
    return dict(json.loads(text))


_FUNCTIONS = {
    "tinsmith.evaluate": _evaluate,
    "tinsmith.loop": _loop,
    "tinsmith.scan": _scan,
    "tinsmith.branch": _branch,
    "tinsmith.declared": _declared,
}
