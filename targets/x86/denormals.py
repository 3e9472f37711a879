"""Denormal numbers count as zero while sums of products run.

The tails of GELU, SiLU and softmax, and states that fade, are denormal numbers. Intel's cores hand
a multiplication of one to microcode, some 150 cycles instead of half a one, and a sum of products
reads each of them many times: a GELU before a 1x1 convolution makes that forty times as slow.
Below 1.2e-38 they add nothing that a float32 sum could show. Kernels that read each element
once keep them, for a logarithm tells them from zero.

MXCSR is the thread's, so a task sets it and puts back what it found. Source: Intel 64 and IA-32
Architectures Software Developer's Manual, volume 1, sections 10.2.3 and 11.6.3.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Stmt

from tinsmith.targets.cpu import loops

_FLUSH_TO_ZERO, _DENORMALS_ARE_ZEROS = 1 << 15, 1 << 6


def flush_denormals(function: PrimFunc) -> PrimFunc:
    """A scheduled `function` whose loops take denormal numbers for zero, and make none.

    In a parallel loop each task sees to it, in whichever thread it runs; a serial one with none
    inside runs in one thread, which sees to it once.
    """

    def outermost(loop: Any, mutator: Any) -> Stmt:
        if loop.kind != tirx.ForKind.PARALLEL:
            return mutator.default_mutate(loop) if _has_tasks(loop.body) else _flushing(loop)
        return tirx.For(
            loop.loop_var,
            loop.min,
            loop.extent,
            loop.kind,
            _flushing(loop.body),
            annotations=loop.annotations,
        )

    return function.with_body(tvm_ffi.structural_mutate(function.body, [(tirx.For, outermost)]))


def _has_tasks(body: Stmt) -> bool:
    kinds: list[int] = []
    tvm_ffi.structural_walk(body, (tirx.For, lambda loop: kinds.append(loop.kind)))
    return tirx.ForKind.PARALLEL in kinds


def _flushing(body: Stmt) -> Stmt:
    """`body` between setting and restoring the control register."""
    control = loops.local_buffer("control", (2,), "uint32")
    found, flushing = loops.load(control, 0), loops.load(control, 1)
    bits = tirx.const(_FLUSH_TO_ZERO | _DENORMALS_ARE_ZEROS, "uint32")
    return loops.allocate(
        [control],
        loops.sequence(
            [
                _emit("stmxcsr", found),
                loops.store(control, [1], tirx.bitwise_or(found, bits)),
                _emit("ldmxcsr", flushing),
                body,
                _emit("ldmxcsr", found),
            ]
        ),
    )


def _emit(name: str, place: Expr) -> Stmt:
    call = tirx.call_llvm_intrin("void", f"llvm.x86.sse.{name}", tirx.address_of(place))
    return tirx.Evaluate(call)
