"""What the shape and arithmetic operators compute, in numpy.

Only operators whose numpy result is the same as the compiled one's (up to the
last bit of a float) are listed; integer division, for example, is not, because
numpy rounds down where C truncates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax

from tinsmith.passes.graph.tensors import integers, shape_values

Evaluator = Callable[[relax.Call, list[np.ndarray]], "np.ndarray | None"]


def _axis_list(call: relax.Call) -> tuple[int, ...] | None:
    return None if call.attrs.axis is None else integers(call.attrs.axis)


def _reshape(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
    return operands[0].reshape([int(extent) for extent in call.ty.shape.values])


def _permute(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
    axes = call.attrs.axes
    return operands[0].transpose(None if axes is None else integers(axes))


def _astype(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
    target = str(call.attrs.dtype)
    if operands[0].dtype.kind == "f" and np.dtype(target).kind in "iu":
        # Out of range and NaN are undefined in C; leave them to the target.
        limits = np.iinfo(target)
        inside = (operands[0] >= limits.min) & (operands[0] <= limits.max)
        if not inside.all():
            return None
    return operands[0].astype(target)


def _concat(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
    axis = 0 if call.attrs.axis is None else int(call.attrs.axis)
    return np.concatenate(operands, axis=axis)


def _take(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
    data, indices = operands
    axis = call.attrs.axis
    if axis is None:
        data, axis = data.reshape(-1), 0
    extent = data.shape[int(axis)]
    indices = np.where(indices < 0, indices + extent, indices)
    if indices.size and (indices.min() < 0 or indices.max() >= extent):
        return None
    return np.take(data, indices, axis=int(axis))


def _strided_slice(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
    def numbers(argument: relax.Expr) -> list[int]:
        return [int(value) for value in argument.fields]

    axes, begins, ends = (numbers(argument) for argument in call.args[1:4])
    steps = numbers(call.args[4]) if len(call.args) > 4 else [1] * len(axes)
    if any(step <= 0 for step in steps):
        return None
    window = [slice(None)] * operands[0].ndim
    for axis, begin, end, step in zip(axes, begins, ends, steps, strict=True):
        window[axis] = slice(begin, end, step)
    return operands[0][tuple(window)]


def _divide(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
    return operands[0] / operands[1] if operands[0].dtype.kind == "f" else None


def _power(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
    return np.power(operands[0], operands[1]) if operands[0].dtype.kind == "f" else None


def _clip(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
    low, high = (value.value for value in call.args[1:3])
    return np.clip(operands[0], operands[0].dtype.type(low), operands[0].dtype.type(high))


def _matmul(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
    return np.matmul(operands[0], operands[1])


def _broadcast(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
    return np.broadcast_to(operands[0], [int(extent) for extent in call.ty.shape.values])


def _full(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
    shape = shape_values(call.ty.shape)
    return None if shape is None else np.full(shape, operands[0])


def _arange(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
    start, stop, step = (argument.value for argument in call.args[:3])
    return np.arange(start, stop, step)


def _along(call: relax.Call, parameter: np.ndarray) -> np.ndarray:
    """A scale or zero point so that it broadcasts against the call's operand."""
    if parameter.size == 1:
        return parameter.reshape(())
    shape = [1] * call.ty.ndim
    shape[int(call.attrs.axis)] = parameter.size
    return parameter.reshape(shape)


def _quantize(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
    target = str(call.attrs.out_dtype)
    if operands[0].dtype != np.float32 or target not in ("int8", "uint8"):
        return None
    scale, zero_point = (_along(call, operand) for operand in operands[1:])
    limits = np.iinfo(target)
    codes = np.rint(operands[0] * (np.float32(1) / scale)) + zero_point.astype(np.float32)
    return np.clip(codes, limits.min, limits.max)


def _dequantize(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
    if operands[0].dtype.kind not in "iu" or operands[1].dtype != np.float32:
        return None
    scale, zero_point = (_along(call, operand) for operand in operands[1:])
    shifted = operands[0].astype(np.int32) - zero_point.astype(np.int32)
    return shifted.astype(np.float32) * scale


def _plain(function: Callable[..., Any]) -> Evaluator:
    def evaluate(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
        return np.asarray(function(*operands))

    return evaluate


def _floats_only(function: Callable[..., Any]) -> Evaluator:
    def evaluate(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
        return np.asarray(function(*operands)) if operands[0].dtype.kind == "f" else None

    return evaluate


def _reduction(function: Callable[..., Any]) -> Evaluator:
    def evaluate(call: relax.Call, operands: list[np.ndarray]) -> np.ndarray | None:
        return np.asarray(
            function(operands[0], axis=_axis_list(call), keepdims=bool(call.attrs.keepdims))
        )

    return evaluate


EVALUATORS: dict[str, Evaluator] = {
    "relax.reshape": _reshape,
    "relax.squeeze": _reshape,
    "relax.expand_dims": _reshape,
    "relax.flatten": _reshape,
    "relax.permute_dims": _permute,
    "relax.astype": _astype,
    "relax.concat": _concat,
    "relax.take": _take,
    "relax.strided_slice": _strided_slice,
    "relax.broadcast_to": _broadcast,
    "relax.full": _full,
    "relax.arange": _arange,
    "relax.add": _plain(np.add),
    "relax.subtract": _plain(np.subtract),
    "relax.multiply": _plain(np.multiply),
    "relax.maximum": _plain(np.maximum),
    "relax.minimum": _plain(np.minimum),
    "relax.negative": _plain(np.negative),
    "relax.abs": _plain(np.abs),
    "relax.equal": _plain(np.equal),
    "relax.not_equal": _plain(np.not_equal),
    "relax.less": _plain(np.less),
    "relax.less_equal": _plain(np.less_equal),
    "relax.greater": _plain(np.greater),
    "relax.greater_equal": _plain(np.greater_equal),
    "relax.logical_and": _plain(np.logical_and),
    "relax.logical_or": _plain(np.logical_or),
    "relax.logical_not": _plain(np.logical_not),
    "relax.where": _plain(np.where),
    "relax.isnan": _plain(np.isnan),
    "relax.isinf": _plain(np.isinf),
    "relax.isfinite": _plain(np.isfinite),
    "relax.divide": _divide,
    "relax.power": _power,
    "relax.sqrt": _floats_only(np.sqrt),
    "relax.rsqrt": _floats_only(lambda x: 1 / np.sqrt(x)),
    "relax.exp": _floats_only(np.exp),
    "relax.log": _floats_only(np.log),
    "relax.tanh": _floats_only(np.tanh),
    "relax.floor": _floats_only(np.floor),
    "relax.ceil": _floats_only(np.ceil),
    "relax.clip": _clip,
    "relax.matmul": _matmul,
    "relax.quantize": _quantize,
    "relax.dequantize": _dequantize,
    "relax.sum": _reduction(np.sum),
    "relax.mean": _reduction(np.mean),
    "relax.max": _reduction(np.max),
    "relax.min": _reduction(np.min),
}
