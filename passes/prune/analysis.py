"""From traced channels to dependency groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tvm

from tinsmith.passes.graph.dataflow import MADE_UP
from tinsmith.passes.prune.constants import constant_reads
from tinsmith.passes.prune.groups import Channels, Group, Groups, Member
from tinsmith.passes.prune.labels import FIXED, Traced
from tinsmith.passes.prune.rules import RULES
from tinsmith.passes.prune.tracer import Tracer, Use


def find_groups(module: tvm.IRModule) -> Groups:
    """The dependency groups of a float module, found from the dataflow of `main` alone.

    The module has its weights as constants, spelled out (after `FoldConstants`), and layouts
    of any order; batch normalisations may be there or folded. Groups that touch an output of
    the graph are frozen, and so is what an operator reads that is not understood; inputs of
    the graph have no channels to remove. Raises ValueError if there is no `main`.

    The idea is that of dependency graphs (Fang et al. 2023, "DepGraph: Towards Any Structural
    Pruning"), but with a label for each channel instead of one edge for each pair of layers:
    concatenations, splits, reshapes and heads are then no special cases.
    """
    return Analysis(module).groups


class Analysis:
    """The groups of a module together with what is known of each tensor and constant."""

    def __init__(self, module: tvm.IRModule) -> None:
        reads = constant_reads(module)
        self._reads = list(reads.values())
        self._arrays = tuple(constant.value.numpy() for constant in reads)
        self.tracer = Tracer(module, RULES)
        self._make_rectangular()
        self._unite_shared_constants()
        self.classes = self.tracer.labels.classes()
        # The group and the unit of each class that is in one.
        self._place: dict[int, tuple[int, int]] = {}
        self.groups = Groups(self._find_groups(), self._arrays)

    def along(self, labels: np.ndarray) -> tuple[int, np.ndarray]:
        """The axis along which `labels` are removed, and the class at each position."""
        return _along(self.classes[labels])

    def stays(self, keep: Mapping[int, np.ndarray]) -> np.ndarray:
        """Which classes stay, as bool, if groups keep these units and all others are whole."""
        stays = np.ones(len(self.classes), bool)
        for number, (group, unit) in self._place.items():
            stays[number] = group not in keep or unit in keep[group]
        return stays

    def located(self, use: Use) -> tuple[int, np.ndarray] | None:
        """The axis of the constant that a use runs through, and the labels along it."""
        axis, _ = self.along(use.labels)
        constant_axis = axis - use.labels.ndim + self._arrays[use.constant].ndim
        if constant_axis < 0 or self._arrays[use.constant].shape[constant_axis] == 1:
            return None
        others = tuple(0 if i != axis else slice(None) for i in range(use.labels.ndim))
        return constant_axis, use.labels[others]

    def _make_rectangular(self) -> None:
        """Let every tensor lose whole slices of one axis only.

        Where channels were split over several axes and no operator has decided which of them
        goes as a whole, positions along the last one stay apart: the same channels of each
        group, as in a channel shuffle.
        """
        labels = self.tracer.labels
        self.classes = labels.classes()
        for _, traced in self._tensors():
            axes = _varying(self.classes[traced.labels])
            if len(axes) > 1:
                window = [slice(None)] * traced.labels.ndim
                for axis in axes[:-1]:
                    window[axis] = slice(0, 1)
                labels.unite(traced.labels, traced.labels[tuple(window)], "is split unevenly")
                self.classes = labels.classes()

    def _unite_shared_constants(self) -> None:
        """A constant that is read several times loses the same channels everywhere."""
        shared: dict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
        for use in self.tracer.uses:
            place = self.located(use)
            if place is not None and self._reads[use.constant] > 1:
                shared[use.constant, place[0]].append(place[1])
        for (constant, _), found in shared.items():
            for labels in found[1:]:
                self.tracer.labels.unite(found[0], labels, "shares a constant")
            if len(found) < self._reads[constant]:
                self.tracer.labels.freeze(found[0], "shares a constant with something unlabelled")

    def _tensors(self) -> Iterator[tuple[str, Traced]]:
        for variable, found in self.tracer.traced.items():
            if isinstance(found, Traced) and found.axes:
                yield self.tracer.names[variable], found

    def _find_groups(self) -> tuple[Group, ...]:
        members: dict[tuple[int, int], tuple[Use, dict[int, np.ndarray]]] = {}
        of_class: dict[int, dict[tuple[int, int], int]] = defaultdict(dict)
        for use in self.tracer.uses:
            place = self.located(use)
            if place is None or (use.constant, place[0]) in members:
                continue
            positions = _positions(self.classes[place[1]])
            members[use.constant, place[0]] = (use, positions)
            for number, indices in positions.items():
                of_class[number][use.constant, place[0]] = len(indices)
        tensors: dict[str, tuple[int, dict[int, np.ndarray]]] = {}
        through: dict[int, dict[str, int]] = defaultdict(dict)
        for name, traced in self._tensors():
            axis, vector = self.along(traced.labels)
            tensors[name] = axis, _positions(vector)
            for number, indices in tensors[name][1].items():
                through[number][name] = len(indices)
        frozen = self.tracer.labels.frozen(self.classes)
        inexact = self.tracer.labels.inexact(self.classes)
        # Classes that run through the same constants and tensors, by as much, are units of one
        # group: as long as one of them is left, none of these is empty.
        units: dict[object, list[int]] = defaultdict(list)
        for number in sorted(of_class):
            runs = tuple(of_class[number].items()), tuple(through[number].items())
            units[runs, frozen.get(number), inexact.get(number)].append(number)
        return tuple(
            self._group(
                index,
                numbers,
                [(key, *members[key]) for key in of_class[numbers[0]]],
                [(name, *tensors[name]) for name in through[numbers[0]]],
                frozen.get(numbers[0], ""),
                inexact.get(numbers[0], ""),
            )
            for index, numbers in enumerate(units.values())
        )

    def _group(
        self,
        index: int,
        classes: Sequence[int],
        members: Sequence[tuple[tuple[int, int], Use, Mapping[int, np.ndarray]]],
        tensors: Sequence[tuple[str, int, Mapping[int, np.ndarray]]],
        frozen: str,
        inexact: str,
    ) -> Group:
        self._place.update({number: (index, unit) for unit, number in enumerate(classes)})
        found = tuple(
            Member(
                constant=constant,
                axis=axis,
                indices=np.stack([positions[number] for number in classes]),
                role=use.role,
                operator=use.operator,
                tensor=use.tensor,
                data=use.data,
                reads_zero=use.reads_zero,
            )
            for (constant, axis), use, positions in members
        )
        through = tuple(
            Channels(name, axis, np.stack([positions[number] for number in classes]))
            for name, axis, positions in tensors
        )
        if len(classes) == 1 and not frozen:
            frozen = "is one unit: nothing would be left"
        producers = [member for member in found if member.role == "produces"]
        if not producers and not frozen:
            frozen = "is padding: nothing produces it"
        produced = (producers or found)[0].tensor
        # Converters make up names for products whose bias is added next.
        names = [produced, *(channels.tensor for channels in through)]
        name = next((name for name in names if not MADE_UP.fullmatch(name)), produced)
        return Group(index, name, len(classes), found, through, frozen, inexact)


def _varying(classes: np.ndarray) -> tuple[int, ...]:
    """The axes along which classes differ."""
    return tuple(
        axis
        for axis, extent in enumerate(classes.shape)
        if extent > 1 and (classes != classes.take([0], axis=axis)).any()
    )


def _along(classes: np.ndarray) -> tuple[int, np.ndarray]:
    """The axis along which classes differ (or the first that is written out), and its classes."""
    axes = _varying(classes) or tuple(i for i, n in enumerate(classes.shape) if n > 1) or (0,)
    others = tuple(slice(None) if i == axes[0] else 0 for i in range(classes.ndim))
    return axes[0], np.atleast_1d(classes[others])


def _positions(vector: np.ndarray) -> dict[int, np.ndarray]:
    """Where each class occurs; FIXED ones are left out."""
    order = np.argsort(vector, kind="stable")
    numbers, begins = np.unique(vector[order], return_index=True)
    parts = np.split(order, begins[1:])
    return {int(n): part for n, part in zip(numbers, parts, strict=True) if n != FIXED}
