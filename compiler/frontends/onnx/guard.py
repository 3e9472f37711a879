"""Tools that may hang, crash or eat memory on a strange model, each in a process of its own.

The shape inference of onnx, its inliner and the optimizer of onnxscript are not made for files
that lie: one dimension of 2^62 keeps the first busy for ever. They run in a fork.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import ModelProto, TensorProto

from tinsmith.compiler.frontends.forked import forked

# Processor time: some to begin with, and more for each node.
_SECONDS, _SECONDS_PER_NODE = 5.0, 0.02
# Tensors of more bytes are not sent back if they are as they were.
_LARGE = 4096
_UNCHANGED = "unchanged"


def in_child(tool: Callable[[ModelProto], ModelProto], model: ModelProto) -> ModelProto:
    """What `tool` makes of `model`, which it must leave as it is, computed by a child process.

    Raises ToolError if it raises, dies, or uses up its time or memory.
    """

    def work() -> bytes:
        made = tool(model)
        _leave_out(made, model)
        return made.SerializeToString()

    seconds = _SECONDS + _SECONDS_PER_NODE * len(model.graph.node)
    result = ModelProto.FromString(forked(work, seconds, model.ByteSize()))
    _restore(result, model)
    return result


def _leave_out(result: ModelProto, model: ModelProto) -> None:
    """Replace large tensors of `result` that `model` has too by their names there."""
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    for tensor in result.graph.initializer:
        original = known.get(tensor.name)
        if original is None or len(tensor.raw_data) <= _LARGE:
            continue
        if original.data_location == TensorProto.DEFAULT and _equal(tensor, original):
            name = tensor.name
            tensor.Clear()
            tensor.name, tensor.doc_string = name, _UNCHANGED


def _equal(tensor: TensorProto, other: TensorProto) -> bool:
    return (
        tensor.data_type == other.data_type
        and tensor.dims == other.dims
        and tensor.raw_data == other.raw_data
    )


def _restore(result: ModelProto, model: ModelProto) -> None:
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    for tensor in result.graph.initializer:
        if not tensor.data_type and tensor.doc_string == _UNCHANGED:
            tensor.CopyFrom(known[tensor.name])
