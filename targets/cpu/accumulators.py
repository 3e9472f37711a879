"""Vector accumulators of a reduction, and how their lanes are combined in the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import ForKind, Stmt, Var

from tinsmith.targets.buffers import buffer_dtype
from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.domain import Assignment
from tinsmith.targets.cpu.elementwise_loops import for_loop
from tinsmith.targets.cpu.expressions import int32
from tinsmith.targets.cpu.program import Axis, Reduction, Stage


@dataclass
class Step:
    """One stage on flat addresses; `reduction` is None for an elementwise one."""

    stage: Stage
    assignment: Assignment
    inner: tuple[Axis, ...]
    reduction: Reduction | None


@dataclass
class Pass:
    """Steps that run in one loop over the row; no inner axes means once per row."""

    inner: tuple[Axis, ...]
    steps: list[Step] = field(default_factory=list)


class Accumulators:
    """Vector accumulators of one pass: one set for each width of vector in use."""

    def __init__(self, current: Pass, lanes: int, unroll: int) -> None:
        self._steps = [s for s in current.steps if s.reduction is not None]
        self._lanes = lanes
        self._unroll = max(1, unroll)
        self._buffers: dict[tuple[int, int], Var] = {}

    def widths(self, extent: int) -> list[int]:
        """Widths of the vectors that cover `extent`, each used as often as it fits."""
        wide = self._lanes * self._unroll
        rest = extent % self._lanes
        chosen = [wide] if self._steps and self._unroll > 1 else []
        chosen += [self._lanes, rest or 1]
        return chosen

    def update(self, step: Step, width: int, lane: Expr, value: Expr) -> Stmt:
        """Adds `value` to the lane's accumulator."""
        buffer = self._buffer(step, width)
        combined = _reduction_of(step).combine(tirx.BufferLoad(buffer, [lane]), value)
        return tirx.BufferStore(buffer, combined, [lane])

    def _buffer(self, step: Step, width: int) -> Var:
        key = (next(i for i, s in enumerate(self._steps) if s is step), width)
        if key not in self._buffers:
            self._buffers[key] = loops.local_buffer(
                f"{step.stage.name}_{width}", (width,), buffer_dtype(step.stage.buffer)
            )
        return self._buffers[key]

    def begin(self) -> list[Stmt]:
        """Allocates and clears the accumulators; to be called after all updates are built."""
        statements: list[Stmt] = []
        for number, step in enumerate(self._steps):
            for (owner, width), buffer in self._buffers.items():
                if owner == number:
                    statements.append(loops.allocate_on_stack(buffer))
                    statements.append(_fill(buffer, width, step))
        return statements

    def end(self) -> list[Stmt]:
        """Combines all accumulators of a step into its result."""
        statements: list[Stmt] = []
        for number, step in enumerate(self._steps):
            total: Expr | None = None
            for (owner, width), buffer in self._buffers.items():
                if owner == number:
                    part = _read(buffer, width)
                    for piece in _pieces(part, width, self._lanes, step):
                        combine = _reduction_of(step).combine
                        total = piece if total is None else combine(total, piece)
            if total is None:
                raise ValueError("a reduction without accumulators")
            result = _combine_lanes(total, self._lanes, step, statements)
            place = step.assignment
            statements.append(tirx.BufferStore(place.buffer, result, [place.offset]))
        return statements


def _reduction_of(step: Step) -> Reduction:
    if step.reduction is None:
        raise ValueError("an elementwise step has no accumulator")
    return step.reduction


def _read(buffer: Var, width: int) -> Expr:
    """All of a buffer as one vector."""
    return tirx.BufferLoad(buffer, [loops.ramp(0, width)])


def _stored(value: Expr, lanes: int, step: Step, statements: list[Stmt]) -> Expr:
    """The vector `value`, computed once.

    It goes through a buffer (a register in the end): TVM would substitute a bound
    variable into each of its uses.
    """
    buffer = loops.local_buffer("part", (lanes,), buffer_dtype(step.stage.buffer))
    statements.append(loops.allocate_on_stack(buffer))
    statements.append(tirx.BufferStore(buffer, value, [loops.ramp(0, lanes)]))
    return _read(buffer, lanes)


def _pieces(vector: Expr, width: int, lanes: int, step: Step) -> list[Expr]:
    """A vector as vectors of `lanes`, the last one filled up with the identity.

    Shuffles and not loads of parts: LLVM forwards a partly overlapping store
    through integer shifts, lane by lane.
    """
    if width == lanes:
        return [vector]
    if width == 1:
        fill = loops.splat(_reduction_of(step).identity, lanes)
        return [tirx.Shuffle([fill, vector], [int32(i) for i in (lanes, *range(1, lanes))])]
    pieces: list[Expr] = []
    for start in range(0, width, lanes):
        sources = [vector]
        if start + lanes > width:
            sources.append(loops.splat(_reduction_of(step).identity, lanes))
        pieces.append(tirx.Shuffle(sources, [int32(i) for i in range(start, start + lanes)]))
    return pieces


def _combine_lanes(vector: Expr, lanes: int, step: Step, statements: list[Stmt]) -> Expr:
    """All lanes of a vector combined, in log2(lanes) steps."""
    while lanes > 1:
        whole = _stored(vector, lanes, step, statements)
        half = lanes // 2
        low, high = (
            tirx.Shuffle([whole], [int32(i) for i in range(start, start + half)])
            for start in (0, half)
        )
        vector = _reduction_of(step).combine(low, high)
        lanes = half
    return vector


def _fill(buffer: Var, width: int, step: Step) -> Stmt:
    identity = _reduction_of(step).identity
    return over_lanes(width, lambda v: tirx.BufferStore(buffer, identity, [v]))


def over_lanes(width: int, body: Callable[[Expr], Stmt]) -> Stmt:
    if width == 1:
        return body(int32(0))
    variable = Var("lane", "int32")
    return for_loop(variable, width, body(variable), ForKind.VECTORIZED)
