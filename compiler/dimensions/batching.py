"""Making the kernels of a graph callable for a part of the batch they were compiled for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product

import tvm
from tvm.ir import GlobalVar
from tvm.tirx import PrimFunc

from tinsmith.compiler.dimensions.accesses import UnknownAccessError
from tinsmith.compiler.dimensions.images import Images, candidates
from tinsmith.compiler.dimensions.independence import (
    DependentImagesError,
    GraphImages,
    results_by_block,
)
from tinsmith.compiler.dimensions.tasks import TaskCut, cut_tasks

# A kernel has few results, each with few axes that might be the batch.
_MOST_CHOICES = 64


@dataclass(frozen=True)
class BatchedGraph:
    """A scheduled module whose kernels can be cut, and where its tensors have their images.

    `overrun` names, by kernel, the parameters of which images behind those asked for are touched.
    `whole` are the kernels of which a part always runs for the whole batch.
    """

    module: tvm.IRModule
    inputs: tuple[Images | None, ...]
    outputs: tuple[Images | None, ...]
    overrun: Mapping[str, frozenset[int]]
    whole: tuple[str, ...]


def batched(
    fused: tvm.IRModule,
    scheduled: tvm.IRModule,
    inputs: Sequence[Images | None],
    count: int,
) -> BatchedGraph:
    """Show that a graph, compiled for `count` images, may be run for fewer, and how.

    `fused` are its kernels before they were scheduled. Raises DependentImagesError for a kernel
    that mixes images or cannot be analysed.
    """
    cuts: dict[str, TaskCut] = {}

    def results_of(
        name: str, operands: Sequence[Images | None]
    ) -> tuple[Images | None, ...] | None:
        try:
            results = results_by_block(fused[name], operands, count)
        except UnknownAccessError:
            strict = _strict_cut(scheduled[name], operands, count)
            if strict is None:
                return None
            results, cuts[name] = strict
            return results
        if results is not None:
            try:
                cuts[name] = cut_tasks(scheduled[name], operands, results, count)
            except UnknownAccessError:
                return None
        return results

    graph = GraphImages(fused, inputs, results_of)
    module = scheduled.clone()
    variables = {v.name_hint: v for v in module.functions if isinstance(v, GlobalVar)}
    for name, cut in cuts.items():
        module.update_func(variables[name], cut.function)
    return BatchedGraph(
        module,
        tuple(inputs),
        graph.outputs,
        {name: cut.overrun for name, cut in cuts.items() if cut.overrun},
        tuple(name for name, cut in cuts.items() if cut.whole),
    )


def _strict_cut(
    function: PrimFunc, operands: Sequence[Images | None], count: int
) -> tuple[tuple[Images | None, ...], TaskCut] | None:
    """The images of the results of a kernel that was written as loops, and the kernel cut.

    What it computes of what cannot be told from its loops. But if the tasks for a batch never
    touch a later image, it does not matter. Any axis of a result may be the batch.
    """
    results = []
    for parameter in list(function.params)[len(operands) :]:
        shape = tuple(int(extent) for extent in parameter.ty.shape)
        results.append(candidates(shape, count))
    for choice in islice(product(*results), _MOST_CHOICES):
        try:
            cut = cut_tasks(function, operands, choice, count)
        except UnknownAccessError:
            return None
        if cut.strict:
            return choice, cut
    return None


__all__ = ["BatchedGraph", "DependentImagesError", "batched"]
