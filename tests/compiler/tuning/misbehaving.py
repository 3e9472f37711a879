"""What a worker imports to have candidates that misbehave, by the width of their tile.

With MISBEHAVE_AT=name=value,... in the environment those with such decisions crash instead.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

from tvm import tirx

from tinsmith.compiler.tuning import batch

# Of a width that no tile has; a template takes what there is.
SEGFAULTS, HANGS, EATS_MEMORY, IS_WRONG, CANNOT_BE_SCHEDULED, EXITS = range(101, 107)
_schedule = batch.schedule_function


def _with(function: tirx.PrimFunc, *statements: tirx.Stmt, last: bool = False) -> tirx.PrimFunc:
    parts = [function.body, *statements] if last else [*statements, function.body]
    return tirx.PrimFunc(
        list(function.params), tirx.SeqStmt(parts), function.ret_type, attrs=function.attrs
    )


def misbehave(function: Any, template: Any, match: Any, decisions: Any, spec: Any) -> tirx.PrimFunc:
    """As `schedule_function`, with something wrong."""
    made = _schedule(function, template, match, decisions, spec)
    crashing = os.environ.get("MISBEHAVE_AT", "")
    if crashing and all(
        decisions.get(name) == int(value)
        for name, value in (pair.split("=") for pair in crashing.split(","))
    ):
        return _with(made, tirx.Evaluate(tirx.call_extern("int32", "raise", 11)))
    vectors = decisions["vectors"]
    if vectors == SEGFAULTS:
        return _with(made, tirx.Evaluate(tirx.call_extern("int32", "raise", 11)))
    if vectors == HANGS:
        return _with(made, tirx.Evaluate(tirx.call_extern("int32", "pause")))
    if vectors == EATS_MEMORY:
        eaten = []
        while True:
            eaten.append(mmap.mmap(-1, 2**28))
    if vectors == IS_WRONG:
        output = made.params[-1]
        zero = [tirx.const(0, "int32")] * len(output.ty.shape)
        wrong = tirx.BufferStore(output, tirx.const(1e6, str(output.ty.dtype)), zero)
        return _with(made, wrong, last=True)
    if vectors == CANNOT_BE_SCHEDULED:
        raise ValueError("no such tile")
    if vectors == EXITS:
        return _with(made, tirx.Evaluate(tirx.call_extern("int32", "exit", 0)))
    return made


batch.schedule_function = misbehave
