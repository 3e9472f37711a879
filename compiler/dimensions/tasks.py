"""How many tasks of a scheduled kernel compute the first images of a batch.

A kernel is a sequence of loops over tasks, and is called with where to end in each:

    for p in T.parallel(224): conv of line p          8 images of 28 lines

    batch of 3: tasks 0 to 83; of 8: all of them

That the tasks left out write nothing of the first images is found out from the addresses they
write: nothing is assumed of a template, and any order of tasks will do in which later images come
later. A loop whose order is another runs to its end, whatever the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr, Range, StringImm
from tvm.sym import Analyzer
from tvm.tirx import PrimFunc, Stmt, Var

from tinsmith.compiler.dimensions.accesses import (
    Access,
    Accesses,
    UnknownAccessError,
    accesses_of,
    root_of,
)
from tinsmith.compiler.dimensions.images import Images, candidates

# Annotation of a loop over tasks: where it ends for a batch of 1, 2, ..., separated by commas.
ENDS_ATTRIBUTE = "tinsmith.ends"


@dataclass(frozen=True)
class TaskCut:
    """A kernel that may be called for a part of its images.

    `function` is the kernel with its loops annotated. `overrun` are the parameters of which it
    touches images behind those asked for, by position: these must be in memory of the whole
    batch. Where `strict`, nothing of those images is read, so that their values cannot matter.
    `whole` counts the loops of which most runs whatever the batch.
    """

    function: PrimFunc
    overrun: frozenset[int]
    strict: bool
    whole: int


def cut_tasks(
    function: PrimFunc,
    operands: Sequence[Images | None],
    results: Sequence[Images | None],
    count: int,
) -> TaskCut:
    """Cut a scheduled kernel whose parameters, first those it reads, have these images.

    None stands for a tensor without a batch. Raises UnknownAccessError where it cannot be told
    what the kernel reads and writes, or where it would follow positions that it reads from images
    behind those asked for.
    """
    return _Cut(function, operands, results, count).result()


class _Part:
    """One top-level statement: a loop that may end early, or anything else."""

    def __init__(self, statement: Stmt, views: Mapping[Var, Var]) -> None:
        self.accesses: Accesses = accesses_of(statement, views)
        self.loop = statement if _may_end(statement) else None
        self.ends: tuple[int, ...] | None = None
        self._known: dict[tuple[Span, int, int], tuple[int, int]] = {}

    @property
    def extent(self) -> int:
        """Number of tasks."""
        return 1 if self.loop is None else int(self.loop.extent)

    def span(self, positions: Iterable[Expr]) -> Span:
        """Positions, each once, with the loops that they depend on."""
        distinct = tuple({tvm_ffi.StructuralKey(p): p for p in positions}.values())
        return Span(distinct, tuple(self.accesses.loops_of(distinct)))

    def bounds(self, span: Span, first: int, end: int) -> tuple[int, int]:
        """The least and the largest image at `span` that the tasks from `first` on touch."""
        if (span, first, end) not in self._known:
            analyzer = Analyzer()
            for variable, low, extent in span.loops:
                if self.loop is not None and variable.same_as(self.loop.loop_var):
                    kind = str(variable.ty.dtype)
                    low, extent = tirx.IntImm(kind, first), tirx.IntImm(kind, end - first)
                analyzer.bind(variable, Range.from_min_extent(low, extent))
            found = [analyzer.const_int_bound(position) for position in span.positions]
            bounds = min(b.min_value for b in found), max(b.max_value for b in found)
            self._known[span, first, end] = bounds
        return self._known[span, first, end]


@dataclass(frozen=True, eq=False)
class Span:
    """Numbers of images as expressions of loop variables, and these loops."""

    positions: tuple[Expr, ...]
    loops: tuple[tuple[Var, Expr, Expr], ...]


def _may_end(statement: Stmt) -> bool:
    return (
        isinstance(statement, tirx.For)
        and statement.kind in (tirx.ForKind.PARALLEL, tirx.ForKind.SERIAL)
        and isinstance(statement.extent, tirx.IntImm)
        and isinstance(statement.min, tirx.IntImm)
        and int(statement.min) == 0
    )


class _Cut:
    def __init__(
        self,
        function: PrimFunc,
        operands: Sequence[Images | None],
        results: Sequence[Images | None],
        count: int,
    ) -> None:
        self.function, self.count = function, count
        self.parameters = list(function.params)
        self.only_read = set(self.parameters[: len(operands)])
        images = (*operands, *results)
        self.images: dict[Var, Images | None] = dict(zip(self.parameters, images, strict=True))
        self._spans: dict[tuple[int, Var], Span | None] = {}
        views: dict[Var, Var] = {}
        allocated: list[Var] = []
        self.parts: list[_Part] = []
        for statement in _flatten(function.body):
            if isinstance(statement, tirx.AllocBuffer):
                allocated.append(statement.buffer)
            elif isinstance(statement, tirx.DeclBuffer):
                views[statement.buffer] = root_of(statement, views)
            elif isinstance(statement, tirx.Bind):
                raise UnknownAccessError("a value between loops")
            else:
                self.parts.append(_Part(statement, views))
        for buffer in allocated:
            users = sum(any(a.buffer is buffer or a.buffer.same_as(buffer)
                            for a in part.accesses.found) for part in self.parts)  # fmt: skip
            # What one statement keeps for itself is its own business.
            if users > 1:
                shape = tuple(int(extent) for extent in buffer.ty.shape)
                self.images[buffer] = next(iter(candidates(shape, count)), None)

    def result(self) -> TaskCut:
        for part in self.parts:
            part.ends = self._ends(part)
        self._complete_what_is_read()
        overrun: set[Var] = set()
        for part in self.parts:
            for buffer in self._tracked(part):
                if not self._stays_within(part, buffer):
                    overrun.add(buffer)
                    self._check_steered(part, buffer)
        return TaskCut(
            self._annotated(),
            frozenset(i for i, p in enumerate(self.parameters) if p in overrun),
            strict=not overrun,
            whole=sum(self._is_whole(part) for part in self.parts),
        )

    def _is_whole(self, part: _Part) -> bool:
        if part.ends is None:
            return bool(self._tracked(part))
        return 2 * part.ends[0] > part.extent and self.count > 2

    def _tracked(self, part: _Part) -> list[Var]:
        """The tensors with images that a part reads or writes."""
        used = (a.buffer for a in part.accesses.found if self.images.get(a.buffer) is not None)
        return list(dict.fromkeys(used))

    def _span(self, part: _Part, chosen: Iterable[Access]) -> Span | None:
        """Where a part goes with these accesses; None if that is not known."""
        positions = []
        for access in chosen:
            images = self.images[access.buffer]
            if access.indices is None or images is None:
                return None
            positions.append(images.position(access.shape, access.indices))
        return part.span(positions)

    def _ends(self, part: _Part) -> tuple[int, ...] | None:
        """Where the loop ends for each batch; None if it has to run to its end."""
        if part.loop is None:
            return None
        # Operands are none of them, even if their addresses are handed on (to be fetched ahead).
        written = self.images.keys() - self.only_read
        writes = [a for a in part.accesses.found if a.writes and a.buffer in written]
        span = self._span(part, writes)
        if span is None or not span.positions:
            return None
        extent, of_image = part.extent, part.extent // self.count
        ends = []
        for batch in range(1, self.count):

            def later(end: int, batch: int = batch) -> bool:
                """Whether only later images are written from `end` on."""
                return end >= extent or part.bounds(span, end, extent)[0] >= batch

            low, high = 1, extent
            guess = batch * of_image
            if guess and later(guess):
                high = guess
                low = guess if guess == 1 or not later(guess - 1) else 1
            while low < high:
                middle = (low + high) // 2
                if later(middle):
                    high = middle
                else:
                    low = middle + 1
            ends.append(low)
        return None if ends and min(ends) == extent else (*ends, extent)

    def _stays_within(self, part: _Part, buffer: Var) -> bool:
        """Whether the tasks for a batch touch no image of a tensor behind it, for any batch."""
        key = (id(part), buffer)
        if key not in self._spans:
            chosen = (a for a in part.accesses.found if a.buffer.same_as(buffer))
            self._spans[key] = self._span(part, chosen)
        span = self._spans[key]
        if part.ends is None or span is None:
            return False
        return all(
            part.bounds(span, 0, end)[1] < batch for batch, end in enumerate(part.ends[:-1], 1)
        )

    def _complete_what_is_read(self) -> None:
        """Run all tasks of what writes a tensor that is read in images behind those asked for."""
        changed = True
        while changed:
            changed = False
            for number, part in enumerate(self.parts):
                for buffer in self._tracked(part):
                    if not _reads(part, buffer) or self._stays_within(part, buffer):
                        continue
                    for other in self.parts[:number]:
                        if other.ends is not None and buffer in self._written(other):
                            other.ends, changed = None, True

    def _written(self, part: _Part) -> set[Var]:
        return {a.buffer for a in part.accesses.found if a.writes} - self.only_read

    def _check_steered(self, part: _Part, buffer: Var) -> None:
        """Positions from memory that nobody has written must not lead out of a tensor."""
        if not any(a.steers and a.buffer.same_as(buffer) for a in part.accesses.found):
            return
        analyzer = part.accesses.analyzer()
        for access in part.accesses.found:
            if not access.steered or access.indices is None:
                continue
            for index, extent in zip(access.indices, access.shape, strict=True):
                bound = analyzer.const_int_bound(index)
                if bound.min_value < 0 or bound.max_value >= extent:
                    raise UnknownAccessError("positions that it reads decide what it reads")

    def _annotated(self) -> PrimFunc:
        ends = {
            part.loop.loop_var: ",".join(map(str, part.ends))
            for part in self.parts
            if part.loop is not None and part.ends is not None
        }

        def annotate(loop: tirx.For) -> tirx.For:
            if loop.loop_var not in ends:
                return loop
            annotations = {**dict(loop.annotations), ENDS_ATTRIBUTE: StringImm(ends[loop.loop_var])}
            return tirx.For(
                loop.loop_var, loop.min, loop.extent, loop.kind, loop.body, annotations=annotations
            )

        body = tvm_ffi.structural_map(self.function.body, (tirx.For, annotate))
        function = self.function
        return PrimFunc(self.parameters, body, function.ret_type, attrs=function.attrs)


def _reads(part: _Part, buffer: Var) -> bool:
    return any(not a.writes and a.buffer.same_as(buffer) for a in part.accesses.found)


def _flatten(statement: Stmt) -> list[Stmt]:
    if isinstance(statement, tirx.SeqStmt):
        return [inner for part in statement.seq for inner in _flatten(part)]
    if isinstance(statement, tirx.AttrStmt):
        return _flatten(statement.body)
    return [statement]
