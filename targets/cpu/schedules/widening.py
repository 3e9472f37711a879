"""Data converted to a wider dtype before a kernel reads them many times."""

from __future__ import annotations

import math

import tvm
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Stmt, Var

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.loops import index, unravel
from tinsmith.targets.spec import TargetSpec

# Vectors that one task converts.
_TASK_VECTORS = 64


def widen(data: Var, dtype: str, spec: TargetSpec) -> tuple[Var, Stmt]:
    """A buffer for the elements of `data` as `dtype`, and the statement that fills it."""
    shape = [int(extent) for extent in data.ty.shape]
    wide = tirx.decl_buffer(shape, dtype, f"{data.name}_{dtype}")
    elements = math.prod(shape)
    lanes = spec.vector_bits // tvm.DataType(dtype).bits
    chunk = min(_TASK_VECTORS * lanes, elements)

    def task(p: Expr) -> Stmt:
        # The last chunk overlaps the one before it.
        first = p * chunk if elements % chunk == 0 else tirx.min(p * chunk, index(elements - chunk))

        def element(i: Expr) -> Stmt:
            # The simplifier folds the divisions away: both buffers are contiguous.
            place = unravel(first + i, shape)
            return loops.store(wide, place, loops.load(data, *place).astype(dtype))

        return loops.sequence([loops.vectors(chunk, lanes, element)])

    return wide, loops.tasks(-(-elements // chunk), elements, 3 * elements, task)
