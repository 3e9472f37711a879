"""Operators with results of unknown shape, in numpy, as ONNX Runtime computes them.

A maker takes the node's attributes, the number of its outputs and the operator set, and answers
the function from inputs (None for one that is left out) to outputs; None leaves the node to the
reference evaluator of the onnx package, which knows all operators and is slower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinsmith.compiler.interpolation import resized, sampling, scales_and_sizes
from tinsmith.compiler.module.vm_rearrangement import REARRANGEMENTS, Maker, Operator
from tinsmith.compiler.module.vm_sequences import SEQUENCES
from tinsmith.compiler.module.vm_suppression import non_max_suppression


def _non_zero(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        (x,) = inputs
        # A scalar counts as a vector of one, but has no axis to have an index.
        if x.ndim == 0:
            return [np.zeros((0, int(x != 0)), np.int64)]
        return [np.stack(np.nonzero(x)).astype(np.int64)]

    return run


def _compress(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    axis = attributes.get("axis")

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        x, condition = inputs
        whole = x.reshape(-1) if axis is None else x
        place = 0 if axis is None else axis
        chosen = np.flatnonzero(condition[: whole.shape[place]])
        return [np.take(whole, chosen, axis=place)]

    return run


def _unique(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    """Values (or slices along an axis), the first position of each, where each is, how often."""
    axis, is_sorted = attributes.get("axis"), attributes.get("sorted", 1)

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        x = inputs[0].reshape(-1) if axis is None else inputs[0]
        place = 0 if axis is None else axis
        # numpy takes every NaN of slices for a value of its own, as ONNX Runtime does.
        values, first, inverse, counts = np.unique(
            x, return_index=True, return_inverse=True, return_counts=True, axis=place,
            equal_nan=False,
        )  # fmt: skip
        inverse = inverse.reshape(-1)
        if not is_sorted:
            order = np.argsort(first, kind="stable")
            position = np.empty_like(order)
            position[order] = np.arange(len(order))
            values = np.take(values, order, axis=place)
            first, counts, inverse = first[order], counts[order], position[inverse]
        return [values, *(part.astype(np.int64) for part in (first, inverse, counts))]

    return run


def _matrix_product(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    return lambda inputs: [np.matmul(inputs[0], inputs[1])]


def _gather(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    axis = attributes.get("axis", 0)

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        x, indices = inputs
        extent = x.shape[axis]
        # Indices out of range are clamped, as in kernels: they never leave memory.
        whole = np.where(indices < 0, indices + extent, indices)
        if not extent and indices.size:
            raise ValueError("an empty axis has nothing to gather")
        return [np.take(x, np.clip(whole, 0, max(extent - 1, 0)), axis=axis)]

    return run


def _resize(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator | None:
    """Resampling; crops and old versions are left to the onnx package."""
    how = sampling(attributes)
    if opset < 11 or how.coordinates == "tf_crop_and_resize":
        return None
    policy = attributes.get("keep_aspect_ratio_policy", b"stretch").decode()

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        x, _, scales, sizes = (*inputs, None, None)[:4]
        axes = [axis % x.ndim for axis in attributes.get("axes", range(x.ndim))]
        factors, wanted = ([] if p is None else p.reshape(-1).tolist() for p in (scales, sizes))
        scale, output = scales_and_sizes(x.shape, axes, factors, wanted, policy)
        if x.dtype.kind == "f" or how.mode == "nearest":
            return [resized(x, scale, output, how)]
        # What is between two integers is cut off.
        between = np.trunc(resized(x.astype(np.float32), scale, output, how))
        limits = np.iinfo(x.dtype)
        return [np.clip(between, limits.min, limits.max).astype(x.dtype)]

    return run


OPERATORS: dict[str, Maker] = {
    "Compress": _compress,
    "Gather": _gather,
    "MatMul": _matrix_product,
    "NonMaxSuppression": non_max_suppression,
    "NonZero": _non_zero,
    "Resize": _resize,
    "Unique": _unique,
    **REARRANGEMENTS,
    **SEQUENCES,
}
