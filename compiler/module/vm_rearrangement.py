"""Operators of unknown shape that move elements about, in numpy: see `vm_operators`.

The evaluator of the onnx package knows them all, and takes 50 to 100 microseconds for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Operator = Callable[[Sequence[Any]], Sequence[Any]]
Maker = Callable[[Mapping[str, Any], int, int], Operator | None]


def _one(function: Callable[..., Any]) -> Maker:
    """An operator with one result and without attributes."""
    return lambda attributes, outputs, opset: lambda inputs: [function(*inputs)]


def _shape(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    part = slice(attributes.get("start", 0), attributes.get("end"))
    return lambda inputs: [np.array(inputs[0].shape[part], np.int64)]


def _reshape(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator | None:
    if opset < 5:
        return None
    zero_is_zero = bool(attributes.get("allowzero", 0))

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        x, wanted = inputs
        sizes = wanted.tolist()
        if not zero_is_zero:
            sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
        return [x.reshape(sizes)]

    return run


def _axes(attributes: Mapping[str, Any], inputs: Sequence[Any]) -> tuple[int, ...] | None:
    """Axes as the second input, or as an attribute in older operator sets."""
    if len(inputs) > 1 and inputs[1] is not None:
        return tuple(inputs[1].reshape(-1).tolist())
    given = attributes.get("axes")
    return None if given is None else tuple(given)


def _squeeze(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    return lambda inputs: [np.squeeze(inputs[0], _axes(attributes, inputs))]


def _unsqueeze(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    return lambda inputs: [np.expand_dims(inputs[0], _axes(attributes, inputs) or ())]


def _transpose(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    return lambda inputs: [np.transpose(inputs[0], attributes.get("perm"))]


def _concat(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    return lambda inputs: [np.concatenate(inputs, attributes.get("axis", 1))]


def _slice(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator | None:
    if opset < 10:
        return None

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        x, starts, ends, axes, steps = (*inputs, None, None)[:5]
        begin, end = starts.tolist(), ends.tolist()
        which = range(len(begin)) if axes is None else axes.tolist()
        step = [1] * len(begin) if steps is None else steps.tolist()
        parts = [slice(None)] * x.ndim
        for axis, low, high, stride in zip(which, begin, end, step, strict=True):
            # Before the first element lies -1 for ONNX, which means the last one to Python.
            extent = x.shape[axis]
            low, high = (v + extent if v < 0 else v for v in (low, high))
            if stride > 0:
                part = slice(min(max(low, 0), extent), min(max(high, 0), extent), stride)
            else:
                last = min(max(high, -1), extent - 1)
                part = slice(min(max(low, 0), extent - 1), last if last >= 0 else None, stride)
                if not extent:
                    part = slice(0, 0)
            parts[axis] = part
        return [x[tuple(parts)]]

    return run


def _tile(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator | None:
    return None if opset < 6 else lambda inputs: [np.tile(inputs[0], inputs[1].tolist())]


def _expand(inputs: Any, shape: Any) -> Any:
    return np.broadcast_to(inputs, np.broadcast_shapes(inputs.shape, tuple(shape.tolist())))


def _range(start: Any, limit: Any, delta: Any) -> Any:
    first, last, step = (value.reshape(-1)[0] for value in (start, limit, delta))
    if step == 0:
        raise ValueError("the step of a range is zero")
    count = max(int(np.ceil((float(last) - float(first)) / float(step))), 0)
    # ONNX Runtime adds them up, and so the errors of floats.
    steps = np.full(count, step, start.dtype)
    steps[:1] = first
    return np.add.accumulate(steps, dtype=start.dtype)


def _constant_of_shape(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    from onnx import numpy_helper

    given = attributes.get("value")
    value = np.zeros(1, np.float32) if given is None else numpy_helper.to_array(given)
    return lambda inputs: [np.full(inputs[0].tolist(), value.reshape(-1)[0], value.dtype)]


def _cast(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator | None:
    from onnx import helper

    dtype = helper.tensor_dtype_to_np_dtype(attributes["to"])
    if dtype.kind not in "fiub":
        return None

    return lambda inputs: [inputs[0].astype(dtype)]


def _pad(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator | None:
    """Padding by a constant, which may be negative: what is cut off."""
    if opset < 11 or attributes.get("mode", b"constant") != b"constant":
        return None

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        x, pads, value, axes = (*inputs, None, None)[:4]
        which = range(x.ndim) if axes is None else axes.reshape(-1).tolist()
        amounts = pads.reshape(-1).tolist()
        before, after = [0] * x.ndim, [0] * x.ndim
        for place, axis in enumerate(which):
            before[axis], after[axis] = amounts[place], amounts[place + len(amounts) // 2]
        kept = [
            slice(max(-low, 0), max(size - max(-high, 0), -low, 0))
            for low, high, size in zip(before, after, x.shape, strict=True)
        ]
        added = [(max(low, 0), max(high, 0)) for low, high in zip(before, after, strict=True)]
        fill = x.dtype.type(0) if value is None or not value.size else value.reshape(-1)[0]
        return [np.pad(x[tuple(kept)], added, constant_values=fill)]

    return run


def _scatter_elements(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator | None:
    if attributes.get("reduction", b"none") != b"none":
        return None
    axis = attributes.get("axis", 0)

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        x, indices, updates = inputs
        result = x.copy()
        whole = np.where(indices < 0, indices + x.shape[axis], indices)
        np.put_along_axis(_under(result, indices.shape, axis), whole, updates, axis)
        return [result]

    return run


def _under(x: np.ndarray, shape: Sequence[int], axis: int) -> np.ndarray:
    """The part of `x` that indices of `shape` speak of: numpy would repeat indices of one row."""
    cut = [slice(size) for size in shape]
    cut[axis] = slice(None)
    return x[tuple(cut)]


def _gather_elements(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    axis = attributes.get("axis", 0)

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        x, indices = inputs
        whole = np.where(indices < 0, indices + x.shape[axis], indices)
        return [np.take_along_axis(_under(x, indices.shape, axis), whole, axis)]

    return run


def _gather_nd(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator | None:
    if attributes.get("batch_dims", 0):
        return None
    return lambda inputs: [inputs[0][tuple(np.moveaxis(inputs[1], -1, 0))]]


def _scatter_nd(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator | None:
    if attributes.get("reduction", b"none") != b"none":
        return None

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        x, indices, updates = inputs
        result = x.copy()
        result[tuple(np.moveaxis(indices, -1, 0))] = updates
        return [result]

    return run


REARRANGEMENTS: dict[str, Maker] = {
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _one(_expand),
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Identity": _one(lambda x: x),
    "Pad": _pad,
    "Range": _one(_range),
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": _one(lambda x: np.array(x.size, np.int64)),
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    # Of tensors whose rank is not known; the others become kernels.
    "Add": _one(np.add),
    "And": _one(np.logical_and),
    "Equal": _one(np.equal),
    "Greater": _one(np.greater),
    "GreaterOrEqual": _one(np.greater_equal),
    "Less": _one(np.less),
    "LessOrEqual": _one(np.less_equal),
    "Mul": _one(np.multiply),
    "Neg": _one(np.negative),
    "Not": _one(np.logical_not),
    "Or": _one(np.logical_or),
    "Sub": _one(np.subtract),
    "Where": _one(np.where),
}
