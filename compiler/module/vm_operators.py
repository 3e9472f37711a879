"""Operators with results of unknown shape, in numpy, as ONNX Runtime computes them.

A maker takes the node's attributes, the number of its outputs and the operator set, and answers
the function from inputs (None for one that is left out) to outputs; None leaves the node to the
reference evaluator of the onnx package, which knows all operators and is slower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compiler.interpolation import resized, sampling, scales_and_sizes
from compiler.module.vm_rearrangement import REARRANGEMENTS, Maker, Operator
from compiler.module.vm_sequences import SEQUENCES

# Boxes that are compared with each other at once, best first.
_TOGETHER = 64


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


def _non_max_suppression(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    """Rows (batch, class, box) of the boxes that no better one of their class covers."""
    centred = bool(attributes.get("center_point_box", 0))

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        boxes, scores, most, overlap, least = (*inputs, None, None, None)[:5]
        limit = 0 if most is None or not most.size else int(most.reshape(-1)[0])
        threshold = np.float32(0 if overlap is None or not overlap.size else overlap.reshape(-1)[0])
        if not 0 <= threshold <= 1:
            raise ValueError("the overlap that suppresses a box must be between 0 and 1")
        rows: list[tuple[int, int, int]] = []
        if limit <= 0:
            return [np.zeros((0, 3), np.int64)]
        for batch in range(scores.shape[0]):
            corners = _corners(boxes[batch], centred)
            for label in range(scores.shape[1]):
                score = scores[batch, label]
                kept = _kept(corners, score, limit, threshold, least)
                rows += [(batch, label, box) for box in kept]
        return [np.array(rows, np.int64).reshape(-1, 3)]

    return run


def _corners(boxes: np.ndarray, centred: bool) -> np.ndarray:
    """float32 `[4, boxes]`: low and high end on the first axis, low and high on the second."""
    if centred:
        x, y, width, height = (boxes[:, i] for i in range(4))
        half_width, half_height = width / np.float32(2), height / np.float32(2)
        return np.stack([y - half_height, y + half_height, x - half_width, x + half_width])
    a, b, c, d = (boxes[:, i] for i in range(4))
    return np.stack([np.minimum(a, c), np.maximum(a, c), np.minimum(b, d), np.maximum(b, d)])


def _kept(
    corners: np.ndarray, score: np.ndarray, limit: int, threshold: np.float32, least: Any
) -> list[int]:
    """Boxes by falling score, without those that a kept one overlaps by more than `threshold`."""
    candidates = np.arange(len(score))
    if least is not None and least.size:
        candidates = np.flatnonzero(score > least.reshape(-1)[0])
    # Of equal scores the earlier box is the better.
    candidates = candidates[np.argsort(-score[candidates], kind="stable")]
    kept: list[int] = []
    for begin in range(0, len(candidates), _TOGETHER):
        if len(kept) >= limit:
            break
        some = candidates[begin : begin + _TOGETHER]
        if kept:
            covered = _overlap(corners[:, kept], corners[:, some]) > threshold
            some = some[~covered.any(0)]
        among = np.packbits(_overlap(corners[:, some], corners[:, some]) > threshold, axis=1)
        # One whole number for each box: the bits of those that it covers, the first one highest.
        rows = [int.from_bytes(row, "big") for row in among]
        bit = 1 << (8 * among.shape[1] - 1) if rows else 0
        gone = 0
        for place, row in enumerate(rows):
            if len(kept) >= limit:
                break
            if not gone & (bit >> place):
                kept.append(int(some[place]))
                gone |= row
    return kept


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`[M, N]`: intersection over union of boxes `[4, M]` and `[4, N]`; 0 without an area."""
    one, two = first[:, :, None], second[:, None, :]
    height = np.minimum(one[1], two[1]) - np.maximum(one[0], two[0])
    width = np.minimum(one[3], two[3]) - np.maximum(one[2], two[2])
    common = np.where((height > 0) & (width > 0), height * width, np.float32(0))
    areas = [(box[1] - box[0]) * (box[3] - box[2]) for box in (one, two)]
    both = areas[0] + areas[1] - common
    real = (areas[0] > 0) & (areas[1] > 0) & (both > 0) & (common > 0)
    return np.divide(common, both, out=np.zeros_like(common), where=real)


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
    "NonMaxSuppression": _non_max_suppression,
    "NonZero": _non_zero,
    "Resize": _resize,
    "Unique": _unique,
    **REARRANGEMENTS,
    **SEQUENCES,
}
