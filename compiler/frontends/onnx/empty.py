"""Tensors without elements.

No kernel computes them, and none reads them: what is empty becomes a constant as soon as its
shape is known, and the operators here, which make something of nothing, do without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import NodeProto
from tvm import relax

from tinsmith.compiler.frontends.onnx.converters.constants import (
    as_numpy,
    concat,
    constant,
    dtype_of,
    known_shape,
    static_shape,
    zeros,
)


def empty_constant(value: Any) -> relax.Expr | None:
    """A constant in place of `value` if it is a tensor without elements, otherwise None."""
    shape = known_shape(value)
    if shape is None or 0 not in shape:
        return None
    return constant(np.zeros(shape, dtype_of(value)))


def without_empty_operands(
    bb: relax.BlockBuilder, node: NodeProto, inputs: Sequence[Any], attributes: Any
) -> relax.Expr | None:
    """What `node` computes of `inputs`, some of them empty; None if its converter can tell."""
    shapes = [known_shape(value) for value in inputs]
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in ("Expand", "Tile") and shapes[0] is not None:
        return _repeated_no_times(node.op_type, inputs[0], shapes[0], as_numpy(inputs[1]))
    if not any(shape and 0 in shape for shape in shapes):
        return None
    if node.op_type == "Concat" and None not in shapes:
        full = [x for x, shape in zip(inputs, shapes, strict=True) if shape and 0 not in shape]
        return concat(bb, full, attributes.get("axis", 1)) if full else None
    if node.op_type in ("MatMul", "Gemm"):
        a, b = (
            relax.op.permute_dims(x) if attributes.get(flag, 0) else x
            for x, flag in zip(inputs[:2], ("transA", "transB"), strict=True)
        )
        product = bb.normalize(relax.op.matmul(bb.normalize(a), bb.normalize(b)))
        nothing = zeros(static_shape(product), dtype_of(product))
        if node.op_type == "MatMul" or len(inputs) < 3 or inputs[2] is None:
            return nothing
        scaled = relax.op.multiply(
            inputs[2], relax.const(attributes.get("beta", 1.0), dtype_of(inputs[2]))
        )
        return relax.op.add(nothing, scaled)
    places = shapes[1] if node.op_type == "ScatterND" else None
    if places and places[-1] == 0 and 0 not in places[:-1]:
        raise ValueError("updates of the whole tensor are not supported")
    if node.op_type in ("Scatter", "ScatterElements", "ScatterND") and 0 in (shapes[1] or ()):
        return inputs[0]
    return None


def _repeated_no_times(
    operator: str, x: relax.Expr, shape: tuple[int, ...], counts: np.ndarray | None
) -> relax.Expr | None:
    """What Expand to, or Tile by, `counts` makes if there is a zero in them."""
    if counts is None or counts.all():
        return None
    sizes = tuple(int(count) for count in counts.reshape(-1))
    if operator == "Expand":
        return zeros(np.broadcast_shapes(shape, sizes), dtype_of(x))
    return zeros([n * times for n, times in zip(shape, sizes, strict=True)], dtype_of(x))
