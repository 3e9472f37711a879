"""A graph without the channels that are not kept: smaller constants, adapted operators."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from tinsmith.passes.graph.tensors import operator_name
from tinsmith.passes.prune.adapt import ADAPTED
from tinsmith.passes.prune.analysis import Analysis
from tinsmith.passes.prune.constants import ConstantReplacer
from tinsmith.passes.prune.groups import checked
from tinsmith.passes.prune.labels import Traced


@tvm.transform.module_pass(opt_level=0, name="Shrink")
class Shrink:
    """Remove the units of dependency groups that are not kept.

    Before, where `keep` has two units of the group of `w1`::

        a: (1, 4, 8, 8) = conv2d(x: (1, 3, 8, 8), const w1: (4, 3, 1, 1))
        b: (1, 4, 8, 8) = add(a, const bias: (1, 4, 1, 1))
        y: (1, 5, 8, 8) = conv2d(b, const w2: (5, 4, 1, 1))

    After::

        a: (1, 2, 8, 8) = conv2d(x: (1, 3, 8, 8), const w1: (2, 3, 1, 1))
        b: (1, 2, 8, 8) = add(a, const bias: (1, 2, 1, 1))
        y: (1, 5, 8, 8) = conv2d(b, const w2: (5, 2, 1, 1))

    `keep` maps the index of a group of `find_groups` to the units that stay (at least one, in
    any order); groups that it does not name stay whole. Attributes that count channels follow:
    groups of convolutions and of group normalisations, bounds of splits, slices and paddings,
    targets of reshapes. Inputs and outputs of `main` keep their shapes.
    """

    def __init__(self, keep: Mapping[int, np.ndarray]) -> None:
        self.keep = dict(keep)

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return shrink(module, self.keep)


def shrink(module: tvm.IRModule, keep: Mapping[int, np.ndarray]) -> tvm.IRModule:
    """`Shrink(keep)` of a module; ValueError if a group cannot lose these units."""
    analysis = Analysis(module)
    kept = checked(analysis.groups, keep)
    if not kept:
        return module
    smaller = Shrinker(module, analysis, kept).run()
    relax.analysis.well_formed(smaller)
    return smaller


class Shrinker(ConstantReplacer):
    """Rewrites the calls of a module whose tensors lose channels."""

    def __init__(
        self, module: tvm.IRModule, analysis: Analysis, keep: Mapping[int, np.ndarray]
    ) -> None:
        self._analysis = analysis
        self._stays = analysis.stays(keep)
        super().__init__(module, self._sliced_constants())

    def _traced(self, expr: relax.Expr) -> Traced | tuple[Traced, ...]:
        """What is known of an expression of the given module."""
        found = self._analysis.tracer.traced.get(expr) if isinstance(expr, relax.Var) else None
        return self._analysis.tracer.of(expr) if found is None else found

    def kept(self, variable: relax.Expr, axis: int) -> list[np.ndarray]:
        """Which positions along an axis of a tensor of the given module stay (bool).

        One array for a tensor, one for each of a tuple.
        """
        found = self._traced(variable)
        if isinstance(found, Traced):
            return [self._kept(found, axis, variable.ty)]
        return [
            self._kept(traced, axis, ty)
            for traced, ty in zip(found, variable.ty.fields, strict=True)
        ]

    def visit(self, variable: relax.Var, value: relax.Expr) -> relax.Expr:
        new = self.substitute(value)
        adapt = ADAPTED.get(str(operator_name(value)))
        if adapt is not None and not new.same_as(value):
            new = adapt(self, variable, value, new)
        return self.emit(new, variable.name)

    def _kept(self, traced: Traced, axis: int, ty: relax.TensorType) -> np.ndarray:
        if axis in traced.axes:
            where, classes = self._analysis.along(traced.labels)
            if where == axis:
                return self._stays[classes]
        return np.ones(int(ty.shape.values[axis]), bool)

    def _sliced_constants(self) -> dict[GenericConst, np.ndarray]:
        constants = self._analysis.tracer.constants
        sliced = dict(enumerate(self._analysis.groups.constants))
        done: set[tuple[int, int]] = set()
        for use in self._analysis.tracer.uses:
            place = self._analysis.located(use)
            if place is None or (use.constant, place[0]) in done:
                continue
            done.add((use.constant, place[0]))
            stays = self._stays[self._analysis.classes[place[1]]]
            sliced[use.constant] = np.compress(stays, sliced[use.constant], axis=place[0])
        whole = self._analysis.groups.constants
        return {
            constant: sliced[index]
            for constant, index in constants.items()
            if sliced[index].shape != whole[index].shape
        }
