"""Labels of channels: which are one and the same, which may not go, and why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The label of everything that cannot be removed on its own: graph inputs, pixels, tokens.
FIXED = 0


@dataclass(frozen=True)
class Traced:
    """What is known of one tensor.

    `labels` are int64 of the tensor's rank; each axis has the tensor's extent or 1, where
    nothing depends on the position along that axis. Elements of equal labels are removed
    together; FIXED ones stay. `zero` tells that elements are 0 once the constants that
    produce their channel are.
    """

    labels: np.ndarray
    zero: bool = True

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes along which labels differ."""
        return tuple(axis for axis, extent in enumerate(self.labels.shape) if extent > 1)

    @property
    def labelled(self) -> bool:
        """Whether any element can be removed."""
        return bool(self.labels.any())


def unlabelled(rank: int) -> Traced:
    """A tensor of which nothing can be removed."""
    return Traced(np.zeros((1,) * rank, np.int64), zero=False)


class Labels:
    """Makes labels, and remembers which are equal and what was found out about them."""

    def __init__(self) -> None:
        self._count = 1
        self._pairs: list[np.ndarray] = []
        self._frozen: list[tuple[np.ndarray, str]] = []
        self._inexact: list[tuple[np.ndarray, str]] = []

    def fresh(self, count: int) -> np.ndarray:
        """`count` labels that no other channel has; FIXED for one, which cannot be spared."""
        if count == 1:
            return np.zeros(1, np.int64)
        labels = np.arange(self._count, self._count + count, dtype=np.int64)
        self._count += count
        return labels

    def unite(self, first: np.ndarray, second: np.ndarray, reason: str) -> None:
        """Elements at the same position of two arrays (broadcast) are removed together.

        Labels that meet a FIXED one are frozen, with that reason.
        """
        first, second = np.broadcast_arrays(first, second)
        pairs = np.stack([first.reshape(-1), second.reshape(-1)], axis=1)
        pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
        met = (pairs == FIXED).any(axis=1)
        self.freeze(pairs[met], reason)
        self._pairs.append(pairs[~met])

    def freeze(self, labels: np.ndarray, reason: str) -> None:
        """These labels may not be removed."""
        if labels.any():
            self._frozen.append((np.unique(labels), reason))

    def mark_inexact(self, labels: np.ndarray, reason: str) -> None:
        """Removing these labels does not give what setting them to zero gives."""
        if labels.any():
            self._inexact.append((np.unique(labels), reason))

    def classes(self) -> np.ndarray:
        """The class of each label: equal for labels that go together; FIXED is class 0."""
        from scipy.sparse import coo_array  # late: whoever does not prune needs none
        from scipy.sparse.csgraph import connected_components

        pairs = np.concatenate([*self._pairs, np.empty((0, 2), np.int64)])
        graph = coo_array(
            (np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (self._count, self._count)
        )
        components = connected_components(graph, directed=False)[1]
        # Numbered in the order in which their first label was made.
        _, first, inverse = np.unique(components, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[inverse]

    def frozen(self, classes: np.ndarray) -> dict[int, str]:
        """The reason for each class that may not be removed: the one found first."""
        return _first_reasons(self._frozen, classes)

    def inexact(self, classes: np.ndarray) -> dict[int, str]:
        """The reason for each class where removing differs from setting to zero."""
        return _first_reasons(self._inexact, classes)


def _first_reasons(found: list[tuple[np.ndarray, str]], classes: np.ndarray) -> dict[int, str]:
    reasons: dict[int, str] = {}
    for labels, reason in found:
        for number in np.unique(classes[labels[labels != FIXED]]):
            reasons.setdefault(int(number), reason)
    return reasons
