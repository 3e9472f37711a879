"""Weights of 16 bits widened once for many rows: a panel of float32 in memory.

Widening in registers takes two instructions for each vector of weights and each register tile;
where many tiles read the same weights, a task widens them once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Stmt, Var

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.arithmetic import Arithmetic, Float32, HalfWeights, vector
from tinsmith.targets.cpu.loops import Index, index
from tinsmith.targets.spec import TargetSpec

# So many tiles that read the same weights pay for writing them to memory first.
_PASSES = 4


def widened_panel_pays(passes: int, steps: int, width: int, spec: TargetSpec) -> bool:
    """Whether to widen the weights of `steps` x `width` for `passes` tiles in memory."""
    return passes >= _PASSES and 4 * steps * width <= spec.l2_bytes


def has_half_weights(arithmetic: Arithmetic) -> bool:
    """Whether kernels of this arithmetic may have such panels."""
    return isinstance(arithmetic, HalfWeights)


def panel_arithmetic(arithmetic: Arithmetic, panels: bool) -> Arithmetic:
    """That of the register tile."""
    return Float32() if panels and has_half_weights(arithmetic) else arithmetic


@dataclass(frozen=True)
class HalfPanel:
    """`buffer` is `[vectors, steps, lanes]` float32, to be allocated around a task."""

    vectors: int
    steps: int
    lanes: int
    buffer: Var

    @classmethod
    def make(cls, vectors: int, steps: int, lanes: int) -> HalfPanel:
        """A panel with memory of its own."""
        buffer = tirx.decl_buffer((vectors, steps, lanes), "float32", "panel")
        return cls(vectors, steps, lanes, buffer)

    def fill(self, stored: Callable[[int, Expr], Expr]) -> Stmt:
        """Widen all; `stored(vector, step)` are the lanes of a step."""

        def step(k: Expr) -> Stmt:
            return loops.sequence(
                tirx.BufferStore(
                    self.buffer,
                    stored(v, k).astype(vector("float32", self.lanes)),
                    self._place(v, k),
                )
                for v in range(self.vectors)
            )

        return loops.serial("k", self.steps, step)

    def load(self, number: int, tap: Index, step: Index) -> Expr:
        """The weights of one step; `tap` is 0."""
        return tirx.BufferLoad(self.buffer, self._place(number, index(step)))

    def _place(self, number: int, step: Expr) -> list[Expr]:
        return [index(number), step, loops.ramp(0, self.lanes)]
