"""Operators on sequences of tensors, in Python: see `vm_operators`.

A sequence is a list of arrays. No operator changes one that it was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinsmith.compiler.module.vm_rearrangement import Maker, Operator


def _position(value: Any, length: int, last: int) -> int:
    """A position from the front, or a negative one from the end, that is at most `last`."""
    position = int(value.reshape(-1)[0])
    whole = position + length if position < 0 else position
    if not 0 <= whole <= last:
        raise ValueError(f"position {position} of a sequence of {length} tensors")
    return whole


def _construct(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    return lambda inputs: [list(inputs)]


def _empty(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    return lambda inputs: [[]]


def _length(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    return lambda inputs: [np.array(len(inputs[0]), np.int64)]


def _at(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        tensors, position = inputs
        return [tensors[_position(position, len(tensors), len(tensors) - 1)]]

    return run


def _insert(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        tensors, tensor, position = (*inputs, None)[:3]
        count = len(tensors)
        place = count if position is None else _position(position, count, count)
        return [[*tensors[:place], tensor, *tensors[place:]]]

    return run


def _erase(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        tensors, position = (*inputs, None)[:2]
        last = len(tensors) - 1
        place = last if position is None else _position(position, len(tensors), last)
        return [[*tensors[:place], *tensors[place + 1 :]]]

    return run


def _concatenated(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    join = np.stack if attributes.get("new_axis", 0) else np.concatenate

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        if not inputs[0]:
            raise ValueError("an empty sequence has nothing to concatenate")
        return [join(inputs[0], axis=attributes["axis"])]

    return run


def _split(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    axis, keeps = attributes.get("axis", 0), attributes.get("keepdims", 1)

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        x, split = (*inputs, None)[:2]
        extent = x.shape[axis]
        if split is None:
            parts = np.split(x, extent, axis) if extent else []
            return [parts if keeps else [np.squeeze(part, axis) for part in parts]]
        if split.ndim:
            sizes = split.tolist()
            if sum(sizes) != extent or min(sizes, default=0) < 0:
                raise ValueError(f"parts of {sizes} of an axis of {extent}")
            return [np.split(x, np.cumsum(sizes)[:-1].tolist(), axis) if sizes else []]
        size = int(split)
        if size <= 0:
            raise ValueError(f"parts of {size}")
        return [np.split(x, range(size, extent, size), axis) if extent else []]

    return run


SEQUENCES: dict[str, Maker] = {
    "ConcatFromSequence": _concatenated,
    "SequenceAt": _at,
    "SequenceConstruct": _construct,
    "SequenceEmpty": _empty,
    "SequenceErase": _erase,
    "SequenceInsert": _insert,
    "SequenceLength": _length,
    "SplitToSequence": _split,
}
