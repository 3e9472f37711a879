"""NonMaxSuppression in numpy, box for box as ONNX Runtime: see `vm_operators`.

Which boxes cover which is computed for many at once; what is left to Python is one operation on
a whole number for each box, whose bits are the boxes that are out of the race. Boxes are the
same for all classes: where few of them have many scores, all are compared with each other, once.
Else those of a class are, in blocks from the best down, as many as are wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tinsmith.compiler.module.vm_rearrangement import Operator

# Boxes of a class that are compared with each other at once, best first.
_TOGETHER = 64


def non_max_suppression(attributes: Mapping[str, Any], outputs: int, opset: int) -> Operator:
    """Rows (batch, class, box) of the boxes that no better one of their class covers."""
    centred = bool(attributes.get("center_point_box", 0))

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        boxes, scores, most, overlap, least = (*inputs, None, None, None)[:5]
        limit = 0 if most is None or not most.size else int(most.reshape(-1)[0])
        threshold = np.float32(0 if overlap is None or not overlap.size else overlap.reshape(-1)[0])
        if not 0 <= threshold <= 1:
            raise ValueError("the overlap that suppresses a box must be between 0 and 1")
        lowest = None if least is None or not least.size else least.reshape(-1)[0]
        found = [np.zeros((3, 0), np.int64)]
        for batch in range(scores.shape[0] if limit > 0 else 0):
            corners = _corners(boxes[batch], centred)
            orders = [_by_score(score, lowest) for score in scores[batch]]
            with np.errstate(all="ignore"):
                kept = _kept_of_classes(corners, orders, limit, threshold)
            labels = np.repeat(np.arange(len(kept)), [some.size for some in kept])
            chosen = np.concatenate([np.zeros(0, np.int64), *kept])
            found.append(np.stack([np.full_like(labels, batch), labels, chosen]))
        return [np.ascontiguousarray(np.concatenate(found, axis=1).T)]

    return run


def _corners(boxes: np.ndarray, centred: bool) -> np.ndarray:
    """float32 `[4, boxes]`: low and high end on the first axis, low and high on the second."""
    if centred:
        x, y, width, height = (boxes[:, i] for i in range(4))
        half_width, half_height = width / np.float32(2), height / np.float32(2)
        return np.stack([y - half_height, y + half_height, x - half_width, x + half_width])
    a, b, c, d = (boxes[:, i] for i in range(4))
    return np.stack([np.minimum(a, c), np.maximum(a, c), np.minimum(b, d), np.maximum(b, d)])


def _by_score(score: np.ndarray, lowest: Any) -> np.ndarray:
    """Boxes with more than the `lowest` score by falling score; of equal ones the earlier first."""
    if lowest is None:
        return np.argsort(-score, kind="stable")
    candidates = np.flatnonzero(score > lowest)
    return candidates[np.argsort(-score[candidates], kind="stable")]


def _kept_of_classes(
    corners: np.ndarray, orders: Sequence[np.ndarray], limit: int, threshold: np.float32
) -> list[np.ndarray]:
    """For each class at most `limit` boxes of its order, without those that a kept one covers."""
    wanted = np.zeros(corners.shape[1], bool)
    for order in orders:
        wanted[order] = True
    some = np.flatnonzero(wanted)
    if some.size**2 > 2 * _TOGETHER * sum(order.size for order in orders):
        return [_kept_in_blocks(corners[:, order], order, limit, threshold) for order in orders]
    place = np.cumsum(wanted) - 1
    chosen = corners[:, some]
    rows = _bits(_covers(chosen, chosen, threshold))
    return [some[_kept(place[order].tolist(), rows, limit)] for order in orders]


def _kept_in_blocks(
    corners: np.ndarray, order: np.ndarray, limit: int, threshold: np.float32
) -> np.ndarray:
    """The boxes of one class; `corners` are in their order."""
    kept = np.zeros(0, np.int64)
    for begin in range(0, len(order), _TOGETHER):
        block = np.arange(begin, min(begin + _TOGETHER, len(order)))
        if kept.size:
            covered = _covers(corners[:, kept], corners[:, block], threshold).any(0)
            block = block[~covered]
        chosen = corners[:, block]
        rows = _bits(_covers(chosen, chosen, threshold))
        kept = np.append(kept, block[_kept(range(len(block)), rows, limit - len(kept))])
        if len(kept) >= limit:
            break
    return order[kept]


def _kept(order: Iterable[int], rows: Sequence[int], limit: int) -> np.ndarray:
    """At most `limit` numbers of `order`, without those whose bit one before it has in its row."""
    kept: list[int] = []
    gone = 0
    for box in order:
        if not gone >> box & 1:
            kept.append(box)
            if len(kept) >= limit:
                break
            gone |= rows[box]
    return np.array(kept, np.int64)


def _bits(covers: np.ndarray) -> list[int]:
    """The rows of a matrix of bool as whole numbers, the first element the lowest bit."""
    packed = np.packbits(covers, axis=1, bitorder="little")
    return [int.from_bytes(row, "little") for row in packed]


def _covers(first: np.ndarray, second: np.ndarray, threshold: np.float32) -> np.ndarray:
    """bool `[M, N]`: whether intersection over union of boxes `[4, M]`, `[4, N]` is above it."""
    one, two = first[:, :, None], second[:, None, :]
    areas = [(box[1] - box[0]) * (box[3] - box[2]) for box in (one, two)]
    height = np.minimum(one[1], two[1])
    height -= np.maximum(one[0], two[0])
    width = np.minimum(one[3], two[3])
    width -= np.maximum(one[2], two[2])
    np.maximum(height, 0, out=height)
    np.maximum(width, 0, out=width)
    common = np.multiply(height, width, out=height)
    union = np.add(areas[0], areas[1], out=width)
    union -= common
    # Boxes without an area have nothing in common with any, and 0 / 0 is above nothing.
    return np.divide(common, union, out=common) > threshold
