"""Weights of quantised models: constants of few bits behind a `dequantize`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax

from tinsmith.passes.graph.tensors import (
    constant,
    constant_array,
    element_type,
    integers,
    operator_name,
)

_STORED = frozenset({"int8", "uint8"})


def is_quantized_constant(call: Any) -> bool:
    """Whether an expression is `dequantize` of a constant of 8 bits with at least two axes.

    Vectors are biases, which are added in float anyway.
    """
    if operator_name(call) != "relax.dequantize" or element_type(call.args[0]) not in _STORED:
        return False
    arrays = [constant_array(argument) for argument in call.args]
    return arrays[0] is not None and arrays[0].ndim >= 2 and all(a is not None for a in arrays)


def permuted_quantized(call: Any, axes: Sequence[object] | None) -> relax.Expr:
    """`permute_dims(call, axes)` for which `is_quantized_constant` holds, on the integers."""
    array = np.asarray(constant_array(call.args[0]))
    order = tuple(reversed(range(array.ndim))) if axes is None else integers(axes)
    order = tuple(axis % array.ndim for axis in order)
    return relax.op.dequantize(
        constant(np.ascontiguousarray(array.transpose(order))),
        call.args[1],
        call.args[2],
        order.index(int(call.attrs.axis) % array.ndim),
        str(call.attrs.out_dtype),
    )
