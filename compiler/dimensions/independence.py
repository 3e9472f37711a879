"""Proof that a graph computes each image of a batch from that image alone.

Kernels are looked at before they are scheduled, when each still is a few blocks that say element
by element what is computed of what:

    matmul[i, j] += x[i, k] * w[k, j]       rows i of x and of the product: images i // rows

A block computes image by image if the positions of all that it reads and writes are equal for all
values of its variables. Views move no memory and change no images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir import Expr, GlobalVar
from tvm.s_tir import SBlock
from tvm.tirx import PrimFunc, Var

from tinsmith.compiler.dimensions.accesses import UnknownAccessError, accesses_of
from tinsmith.compiler.dimensions.images import Images, candidates

# Finds the images of a kernel's results from those of its operands; None if they are mixed.
ImagesOfResults = Callable[[str, Sequence["Images | None"]], "tuple[Images | None, ...] | None"]


class DependentImagesError(Exception):
    """A kernel that may compute one image from another; carries the kernel's name."""

    def __init__(self, kernel: str) -> None:
        super().__init__(kernel)
        self.kernel = kernel


def results_by_block(
    function: PrimFunc, operands: Sequence[Images | None], count: int
) -> tuple[Images | None, ...] | None:
    """The images of the results of an unscheduled kernel, whose first parameters are `operands`.

    None where a block mixes images, or may. Raises UnknownAccessError if there are no blocks.
    """
    known: dict[Var, Images | None] = dict(zip(function.params, operands, strict=False))
    blocks: list[SBlock] = []
    tvm_ffi.structural_walk(function.body, (SBlock, blocks.append))
    leaves = [block for block in blocks if block.iter_vars or not _has_blocks(block)]
    if not leaves:
        raise UnknownAccessError("no blocks")
    for block in sorted(leaves, key=blocks.index):
        found = _written_by(block, known, count)
        if found is None:
            return None
        known.update(found)
    results = list(function.params)[len(operands) :]
    return tuple(known.get(result) for result in results)


def _has_blocks(block: SBlock) -> bool:
    inner: list[SBlock] = []
    tvm_ffi.structural_walk(block.body, (SBlock, inner.append))
    return bool(inner)


def _written_by(
    block: SBlock, known: Mapping[Var, Images | None], count: int
) -> dict[Var, Images | None] | None:
    """The images of what a block writes; None if it does not keep them apart."""
    body = tirx.SeqStmt([block.init, block.body]) if block.init is not None else block.body
    accesses = accesses_of(body, {})
    accesses.loops[:0] = [(v.var, v.dom.min, v.dom.extent) for v in block.iter_vars]
    if any(access.indices is None for access in accesses.found):
        raise UnknownAccessError("addresses are handed on")
    analyzer = accesses.analyzer()
    written = list(dict.fromkeys(a.buffer for a in accesses.found if a.writes))
    origins: list[Images] = []
    positions: list[Expr] = []
    for access in accesses.found:
        images = None if access.buffer in written else known.get(access.buffer)
        if images is not None and access.indices is not None:
            origins.append(images)
            positions.append(images.position(access.shape, access.indices))
    if not positions:
        return dict.fromkeys(written)

    def is_position(other: Expr) -> bool:
        return bool(analyzer.can_prove_equal(other, positions[0]))

    if not all(map(is_position, positions[1:])):
        return None
    found: dict[Var, Images | None] = {}
    for buffer in written:
        own = [a for a in accesses.found if a.buffer.same_as(buffer)]
        for images in candidates(own[0].shape, count, origins):
            if all(is_position(images.position(a.shape, a.indices or ())) for a in own):
                found[buffer] = images
                break
        else:
            return None
    return found


class GraphImages:
    """The images of all tensors of a graph of kernels.

    `kernels` has those of each kernel's parameters, `outputs` those of the graph's results.
    Raises DependentImagesError for a kernel that mixes images.
    """

    def __init__(
        self,
        module: tvm.IRModule,
        inputs: Sequence[Images | None],
        results_of: ImagesOfResults,
    ) -> None:
        self.kernels: dict[str, tuple[Images | None, ...]] = {}
        self._results_of = results_of
        main = module["main"]
        self._values: dict[Var, object] = dict(zip(main.params, inputs, strict=True))
        for block in main.body.blocks:
            for binding in block.bindings:
                self._values[binding.var] = self._value(binding.value)
        self.outputs = tuple(_flat(self._value(main.body.body)))

    def _value(self, value: relax.Expr) -> object:
        if isinstance(value, relax.Var):
            return self._values[value]
        if isinstance(value, relax.Tuple):
            return tuple(self._value(field) for field in value.fields)
        if isinstance(value, relax.TupleGetItem):
            whole = self._value(value.tuple_value)
            assert isinstance(whole, tuple)
            return whole[value.index]
        if not isinstance(value, relax.Call):
            return None  # a constant
        if value.op.name == "relax.call_tir" and isinstance(value.args[0], GlobalVar):
            return self._kernel(value)
        # Only views are left besides the calls of kernels.
        return self._value(value.args[0])

    def _kernel(self, call: relax.Call) -> object:
        name = call.args[0].name_hint
        operands = _flat(self._value(call.args[1]))
        found: tuple[Images | None, ...] | None
        if all(images is None for images in operands):
            single = isinstance(call.ty, relax.TensorType)
            found = (None,) * (1 if single else len(call.ty.fields))
        else:
            found = self._results_of(name, operands)
        if found is None:
            raise DependentImagesError(name)
        images = (*operands, *found)
        if self.kernels.setdefault(name, images) != images:
            raise DependentImagesError(name)
        return found[0] if isinstance(call.ty, relax.TensorType) else found


def _flat(value: object) -> list[Images | None]:
    if isinstance(value, tuple):
        return [leaf for part in value for leaf in _flat(part)]
    assert value is None or isinstance(value, Images)
    return [value]
