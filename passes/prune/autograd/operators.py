"""What each Relax operator is in PyTorch.

A rule takes a call and answers a function of its tensors. Attributes are read once, when the
graph is converted. Shapes of the graph hold for its own batch; functions take any batch in front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tvm import relax

from tinsmith.passes.graph.tensors import element_type, integers, static_shape
from tinsmith.passes.prune.autograd.windows import WINDOWED

# Tensors come in the order in which the call reads them; a tuple's members one by one.
Function = Callable[..., Any]
Rule = Callable[[relax.Call], Function]

_DTYPES = {
    "bool": torch.bool,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
}


def _plain(function: Function) -> Rule:
    """The rule of an operator without attributes."""
    return lambda call: function


def _shape(expr: relax.Expr) -> tuple[int, ...]:
    shape = static_shape(expr)
    if shape is None:
        raise ValueError("a shape that depends on the data")
    return shape


def _clip(call: relax.Call) -> Function:
    low, high = (float(bound.value) for bound in call.args[1:3])
    return lambda x: x.clamp(low, high)


def _leaky_relu(call: relax.Call) -> Function:
    return lambda x: functional.leaky_relu(x, float(call.attrs.alpha))


def _prelu(call: relax.Call) -> Function:
    shape = [1] * len(_shape(call))
    shape[int(call.attrs.axis)] = -1
    return lambda x, slope: torch.where(x >= 0, x, x * slope.reshape(shape))


def _softplus(call: relax.Call) -> Function:
    beta, threshold = float(call.attrs.beta), float(call.attrs.threshold)
    return lambda x: functional.softplus(x, beta, threshold)


def _astype(call: relax.Call) -> Function:
    dtype = _DTYPES.get(str(call.attrs.dtype))
    if dtype is None:
        raise ValueError(f"elements of {call.attrs.dtype}")
    return lambda x: x.to(dtype)


def _batch_norm(call: relax.Call) -> Function:
    # By its statistics, whatever the attribute `training` says: as all passes take it.
    axis, epsilon = int(call.attrs.axis), float(call.attrs.epsilon)

    def normalize(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor) -> Any:
        moved = x.movedim(axis, 1)
        y = functional.batch_norm(moved, mean, variance, gamma, beta, False, 0.0, epsilon)
        return y.movedim(1, axis), mean, variance

    return normalize


def _trailing(axes: Sequence[int], rank: int) -> int:
    """How many axes at the end are normalised over."""
    if sorted(axis % rank for axis in axes) != list(range(rank - len(axes), rank)):
        raise ValueError("a normalisation over axes that are not the last ones")
    return len(axes)


def _layer_norm(call: relax.Call) -> Function:
    shape = _shape(call)
    count = _trailing(integers(call.attrs.axes), len(shape))
    epsilon = float(call.attrs.epsilon)
    return lambda x, gamma, beta: functional.layer_norm(x, shape[-count:], gamma, beta, epsilon)


def _rms_norm(call: relax.Call) -> Function:
    axes, epsilon = integers(call.attrs.axes), float(call.attrs.epsilon)
    return lambda x, weight: x * torch.rsqrt(x.square().mean(axes, True) + epsilon) * weight


def _group_norm(call: relax.Call) -> Function:
    shape = _shape(call)
    axis = int(call.attrs.channel_axis) % len(shape)
    if axis != 1 or sorted(integers(call.attrs.axes)) != list(range(2, len(shape))):
        raise ValueError("a normalisation of groups whose channels are not the second axis")
    # Instance normalisation is that of groups of one channel.
    groups = int(getattr(call.attrs, "num_groups", shape[1]))
    epsilon = float(call.attrs.epsilon)
    return lambda x, gamma, beta: functional.group_norm(x, groups, gamma, beta, epsilon)


def _softmax(function: Function) -> Rule:
    def rule(call: relax.Call) -> Function:
        axis = int(call.attrs.axis)
        return lambda x: function(x, axis)

    return rule


def _reduction(function: Function) -> Rule:
    def rule(call: relax.Call) -> Function:
        rank = len(_shape(call.args[0]))
        axes = range(rank) if call.attrs.axis is None else integers(call.attrs.axis)
        dims, keep = [axis % rank for axis in axes], bool(call.attrs.keepdims)
        return lambda x: function(x, dims, keep)

    return rule


def _variance(x: Tensor, dims: Sequence[int], keep: bool) -> Tensor:
    return x.var(dims, correction=0, keepdim=keep)


def _reshape(call: relax.Call) -> Function:
    before, after = _shape(call.args[0]), _shape(call)
    if not before or not after:
        return lambda x: x.reshape(after)

    def reshape(x: Tensor) -> Tensor:
        # Rows stay together: a batch that is larger makes the first axis so much longer.
        return x.reshape(x.shape[0] * after[0] // before[0], *after[1:])

    return reshape


def _broadcast_to(call: relax.Call) -> Function:
    before, after = _shape(call.args[0]), _shape(call)
    batched = len(before) == len(after) and before[:1] == after[:1]
    return lambda x: x.expand(x.shape[0] if batched else after[0], *after[1:])


def _permute(call: relax.Call) -> Function:
    rank = len(_shape(call))
    axes = call.attrs.axes
    order = tuple(reversed(range(rank))) if axes is None else integers(axes)
    return lambda x: x.permute(order)


def _concat(call: relax.Call) -> Function:
    axis = int(call.attrs.axis) % len(_shape(call))

    def concat(*parts: Tensor) -> Tensor:
        if axis:  # what does not depend on the inputs has no larger batch
            batch = max(part.shape[0] for part in parts)
            parts = tuple(part.expand(batch, *part.shape[1:]) for part in parts)
        return torch.cat(parts, axis)

    return concat


def _stack(call: relax.Call) -> Function:
    axis = int(call.attrs.axis)
    return lambda *parts: torch.stack(parts, axis)


def _split(call: relax.Call) -> Function:
    axis = int(call.attrs.axis)
    extents = [int(field.shape.values[axis]) for field in call.ty.fields]
    return lambda x: torch.split(x, extents, axis)


def _strided_slice(call: relax.Call) -> Function:
    def numbers(argument: Any) -> tuple[int, ...]:
        fields = argument.fields if hasattr(argument, "fields") else argument.values
        return tuple(int(getattr(field, "value", field)) for field in fields)

    axes, begins, ends = (numbers(argument) for argument in call.args[1:4])
    strides = numbers(call.args[4]) if len(call.args) > 4 else (1,) * len(axes)
    if min(strides) < 1:
        raise ValueError("a slice that runs backwards")
    rank = len(_shape(call.args[0]))
    index = [slice(None)] * rank
    for axis, begin, end, stride in zip(axes, begins, ends, strides, strict=True):
        index[axis] = slice(begin, end, stride)
    chosen = tuple(index)
    return lambda x: x[chosen]


def _take(call: relax.Call) -> Function:
    rank = len(_shape(call.args[0]))
    axis = 0 if call.attrs.axis is None else int(call.attrs.axis) % rank

    def take(x: Tensor, indices: Tensor) -> Tensor:
        found = x.index_select(axis, indices.reshape(-1).long())
        return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])

    return take


def _squeeze(call: relax.Call) -> Function:
    rank = len(_shape(call.args[0]))
    ones = [i for i, extent in enumerate(_shape(call.args[0])) if extent == 1]
    axes = ones if call.attrs.axis is None else [a % rank for a in integers(call.attrs.axis)]
    return lambda x: x.squeeze(axes)


def _expand_dims(call: relax.Call) -> Function:
    rank = len(_shape(call))
    index: list[slice | None] = [slice(None)] * rank
    for axis in integers(call.attrs.axis):
        index[axis % rank] = None
    chosen = tuple(index)
    return lambda x: x[chosen]


def _pad(call: relax.Call) -> Function:
    modes = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}
    mode = modes.get(str(call.attrs.pad_mode))
    if mode is None:
        raise ValueError(f"a padding of mode {call.attrs.pad_mode}")
    widths = integers(call.attrs.pad_width)
    # Relax counts from the first axis, PyTorch from the last.
    pairs = [widths[i : i + 2] for i in range(0, len(widths), 2)]
    while mode != "constant" and pairs and not any(pairs[0]):
        pairs = pairs[1:]
    flat = [width for pair in reversed(pairs) for width in pair]
    value = float(call.attrs.pad_value) if mode == "constant" else None
    return lambda x: functional.pad(x, flat, mode, value)


def _resize(call: relax.Call) -> Function:
    attrs = call.attrs
    size = _shape(call)[2:]
    way = (str(attrs.method), str(attrs.coordinate_transformation_mode))
    whole = all(out % n == 0 for out, n in zip(size, _shape(call.args[0])[2:], strict=True))
    if str(attrs.layout) != "NCHW":
        raise ValueError(f"a resize of layout {attrs.layout}")
    if way == ("linear", "half_pixel"):
        return lambda x: functional.interpolate(x, size, mode="bilinear")
    if way == ("linear", "align_corners"):
        return lambda x: functional.interpolate(x, size, mode="bilinear", align_corners=True)
    if way[0] == "nearest_neighbor" and way[1] in ("asymmetric", "half_pixel") and whole:
        return lambda x: functional.interpolate(x, size, mode="nearest")
    raise ValueError(f"a resize by {way[0]}, {way[1]}")


def _divide(call: relax.Call) -> Function:
    whole = not str(element_type(call)).startswith("float")
    return lambda x, y: torch.div(x, y, rounding_mode="trunc" if whole else None)


_SAME_NAME = (
    *("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "bitwise_not", "ceil", "cos"),
    *("cosh", "erf", "exp", "floor", "isfinite", "isinf", "isnan", "log", "logical_not"),
    *("negative", "round", "rsqrt", "sigmoid", "sign", "sin", "sinh", "square", "sqrt", "tan"),
    *("tanh", "trunc", "add", "subtract", "multiply", "maximum", "minimum", "where"),
    *("not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and"),
    *("logical_or", "logical_xor", "matmul"),
)

OPERATORS: dict[str, Rule] = {
    **{f"relax.{name}": _plain(getattr(torch, name)) for name in _SAME_NAME},
    **{
        f"relax.nn.{name}": _plain(getattr(functional, name))
        for name in ("relu", "relu6", "selu", "silu", "gelu")
    },
    **WINDOWED,
    "relax.equal": _plain(torch.eq),
    "relax.power": _plain(torch.pow),
    "relax.floor_divide": _plain(torch.floor_divide),
    "relax.divide": _divide,
    "relax.nn.gelu_tanh": _plain(lambda x: functional.gelu(x, approximate="tanh")),
    "relax.nn.dropout": _plain(lambda x: (x, torch.ones_like(x))),
    "relax.clip": _clip,
    "relax.nn.leakyrelu": _leaky_relu,
    "relax.nn.prelu": _prelu,
    "relax.nn.softplus": _softplus,
    "relax.astype": _astype,
    "relax.nn.batch_norm": _batch_norm,
    "relax.nn.layer_norm": _layer_norm,
    "relax.nn.rms_norm": _rms_norm,
    "relax.nn.group_norm": _group_norm,
    "relax.nn.instance_norm": _group_norm,
    "relax.nn.softmax": _softmax(torch.softmax),
    "relax.nn.log_softmax": _softmax(torch.log_softmax),
    "relax.mean": _reduction(torch.mean),
    "relax.sum": _reduction(torch.sum),
    "relax.max": _reduction(torch.amax),
    "relax.min": _reduction(torch.amin),
    "relax.variance": _reduction(_variance),
    "relax.std": _reduction(lambda *arguments: _variance(*arguments).sqrt()),
    "relax.reshape": _reshape,
    "relax.flatten": _reshape,
    "relax.nn.batch_flatten": _reshape,
    "relax.broadcast_to": _broadcast_to,
    "relax.permute_dims": _permute,
    "relax.concat": _concat,
    "relax.stack": _stack,
    "relax.split": _split,
    "relax.strided_slice": _strided_slice,
    "relax.take": _take,
    "relax.squeeze": _squeeze,
    "relax.expand_dims": _expand_dims,
    "relax.nn.pad": _pad,
    "relax.image.resize2d": _resize,
}
