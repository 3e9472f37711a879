"""Splits a lowered kernel into stages: plain C functions that a thread pool can share out.

A kernel is a sequence of top-level statements. Each parallel loop among them
becomes a stage of its own, every run of other statements between them becomes
a serial stage:

    for p in T.parallel(56): A        int32 k_0(int32 begin, int32 end, float *x, float *y)
    for i in range(8): B         ->   int32 k_1(int32 begin, int32 end, float *y, float *z)

The runtime calls a parallel stage with parts of `[0, extent)`; stages of one
kernel run one after the other. A serial loop around parallel ones (the steps of a
recurrence) becomes stages that the runtime runs in rounds; they read the number of
the round from a scratch buffer, which the last of them counts on:

    for t in range(9):                    k_0: round[0] = 0
        for p in T.parallel(4): A    ->   9 times: k_1 (A of t = round[0]), shared out,
        B                                          k_2 (B; round[0] += 1)

All memory comes in by pointer, each `noalias`:

- the kernel's own arguments,
- *scratch*: buffers that live across stages, and large ones of serial stages;
  the execution plan gives them a place in the arena for the time of the step;
- *task scratch*: buffers above `STACK_BYTES` inside a parallel loop, one
  instance per thread.

Smaller buffers stay on the stack, where LLVM turns accumulators into
registers. A parallel loop in any other place runs serially.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import tvm_ffi
from tvm import tirx
from tvm.ir import PointerType, PrimType, StringImm, TensorLoad
from tvm.tirx import IntImm

from tinsmith.compiler.dimensions.tasks import ENDS_ATTRIBUTE

ALIGNMENT = 64
# Above this a buffer would crowd a small thread stack; below it is free and can become registers.
STACK_BYTES = 8 * 1024
_ZERO, _ONE = IntImm("int32", 0), IntImm("int32", 1)


class UnsupportedKernelError(Exception):
    """A kernel uses something that has no self-contained form; carries the reason."""


@dataclass(frozen=True)
class Stage:
    """One C function `int32 symbol(int32 begin, int32 end, pointers...)`.

    `extent` is the number of iterations that may be shared out (1 for a serial
    stage). It and the stages behind it, `span` together, run `rounds` times in
    turn. `pointers` says where each pointer comes from: below the number of
    the kernel's arguments it is that argument, above it counts on through the
    kernel's scratch buffers; `task_scratch` are the byte offsets in the
    calling thread's scratch of the pointers that follow. `ends` has the number of
    iterations for a batch of 1, 2, ... where that decides; an `alone` stage is not
    shared out.
    """

    symbol: str
    extent: int
    pointers: tuple[int, ...]
    task_scratch: tuple[int, ...]
    rounds: int = 1
    span: int = 1
    ends: tuple[int, ...] = ()
    alone: bool = False


@dataclass(frozen=True)
class _Group:
    """Statements that become one stage, run in each round of `loop`, if there is one."""

    statements: list[tirx.Stmt]
    loop: tirx.For | None = None

    @property
    def parallel(self) -> bool:
        """Whether it is one parallel loop."""
        return _is_parallel(self.statements[0])

    @property
    def separate(self) -> bool:
        """Whether it is one loop that is a stage of its own."""
        return self.parallel or bool(_ends(self.statements[0]))

    @property
    def values(self) -> set[tirx.Var]:
        """What its statements bind by themselves."""
        return {s.var for s in self.statements if isinstance(s, tirx.Bind)}


@dataclass(frozen=True)
class KernelCode:
    """How a kernel is called: its stages and the scratch memory it needs, in bytes."""

    name: str
    argument_count: int
    stages: tuple[Stage, ...]
    scratch: tuple[int, ...] = ()
    task_scratch_bytes: int = 0
    serialised_loops: int = 0


def align_up(value: int, alignment: int = ALIGNMENT) -> int:
    """The smallest multiple of `alignment` that is not below `value`."""
    return (value + alignment - 1) // alignment * alignment


def buffer_bytes(buffer: tirx.Var) -> int | None:
    """Size of a buffer with a constant shape, else None."""
    count = 1
    for extent in buffer.ty.shape:
        if not isinstance(extent, IntImm):
            return None
        count *= int(extent.value)
    data_type = tvm_ffi.dtype(str(buffer.ty.dtype))
    return count * ((data_type.bits * data_type.lanes + 7) // 8)


def _flatten(statement: tirx.Stmt) -> list[tirx.Stmt]:
    if isinstance(statement, tirx.SeqStmt):
        return [inner for part in statement.seq for inner in _flatten(part)]
    if isinstance(statement, tirx.AttrStmt) and str(statement.attr_key).startswith("pragma_"):
        return _flatten(statement.body)  # a hint for other back ends
    return [statement]


def _imports(statement: tirx.Stmt) -> list[tirx.AttrStmt]:
    """The definitions in LLVM's language that stand around a kernel: every stage needs them."""
    found: list[tirx.AttrStmt] = []
    tvm_ffi.structural_walk(statement, (tirx.AttrStmt, found.append))
    return [attribute for attribute in found if attribute.attr_key == "pragma_import_llvm"]


def _is_parallel(statement: tirx.Stmt) -> bool:
    return (
        isinstance(statement, tirx.For)
        and statement.kind == tirx.ForKind.PARALLEL
        and isinstance(statement.extent, IntImm)
        and isinstance(statement.min, IntImm)
    )


def _ends(statement: tirx.Stmt) -> tuple[int, ...]:
    """Where a loop that computes one entry of a batch after the other ends, for each batch."""
    if not isinstance(statement, tirx.For) or ENDS_ATTRIBUTE not in statement.annotations:
        return ()
    ends = tuple(map(int, str(statement.annotations[ENDS_ATTRIBUTE].value).split(",")))
    known = isinstance(statement.extent, IntImm) and isinstance(statement.min, IntImm)
    # Of a loop that lowering has taken apart all iterations run.
    whole = known and int(statement.extent.value) == ends[-1] and int(statement.min.value) == 0
    return ends if whole else ()


def _is_in_rounds(statement: tirx.Stmt) -> bool:
    """Whether it is a serial loop whose rounds have parallel loops of their own."""
    return (
        isinstance(statement, tirx.For)
        and statement.kind == tirx.ForKind.SERIAL
        and isinstance(statement.extent, IntImm)
        and int(statement.extent.value) > 0
        and isinstance(statement.min, IntImm)
        and int(statement.min.value) == 0
        and any(map(_is_parallel, _flatten(statement.body)))
    )


def _definitions_for(
    group: Sequence[tirx.Stmt], definitions: Sequence[tirx.Stmt]
) -> list[tirx.Stmt]:
    """Those of the views and values in `definitions` that `group` uses, directly or not."""
    used = set().union(*map(_used_variables, group))
    needed = []
    for definition in reversed(definitions):
        view = isinstance(definition, tirx.DeclBuffer)
        if (definition.buffer if view else definition.var) in used:
            needed.append(definition)
            used |= _used_variables(definition)
    return needed[::-1]


def _used_variables(statement: tirx.Stmt) -> set[tirx.Var]:
    return set(tirx.analysis.undefined_vars(statement))


class _KernelSplitter:
    """Splits one function; `functions` and `code` are the result."""

    def __init__(
        self, name: str, function: tirx.PrimFunc, aligned: Sequence[bool], prefix: str
    ) -> None:
        self.name = name
        self.prefix = prefix
        self.function = function
        self.parameters = list(function.params)
        for parameter in self.parameters:
            if not tirx.is_buffer_var(parameter):
                raise UnsupportedKernelError(f"kernel {name} takes the scalar {parameter.name}")
        self.aligned = list(aligned)
        self.imports = _imports(function.body)
        self.allocations: list[tuple[tirx.AllocBuffer, tirx.For | None]] = []
        self.definitions: list[tirx.Stmt] = []
        # Values that are read from memory where they stand.
        self.placed: set[tirx.Var] = set()
        self.counters: dict[tirx.For, tirx.Var] = {}
        self.scratch: list[tirx.Var] = []
        self.task_scratch_bytes = 0
        self.serialised_loops = 0
        self.functions: dict[str, tirx.PrimFunc] = {}

    def split(self) -> KernelCode:
        statements = _flatten(self.function.body)
        groups = self._groups(statements)
        if any(_used_variables(statement) & self.placed for statement in self.definitions) or any(
            set().union(*map(_used_variables, group.statements)) & self.placed - group.values
            for group in groups
        ):
            kept = [s for s in statements if not isinstance(s, tirx.AllocBuffer)]
            groups, self.definitions, self.scratch = [_Group(kept)], [], []
            self.allocations = [(s, None) for s in statements if isinstance(s, tirx.AllocBuffer)]
        needed = [_definitions_for(group.statements, self.definitions) for group in groups]
        users = [
            set().union(*map(_used_variables, [*definitions, *group.statements]))
            for definitions, group in zip(needed, groups, strict=True)
        ]
        local: dict[int, list[tirx.AllocBuffer]] = {}
        for allocation, loop in self.allocations:
            size = buffer_bytes(allocation.buffer)
            if size is None:
                raise UnsupportedKernelError(f"kernel {self.name} allocates a dynamic buffer")
            using = [i for i, used in enumerate(users) if allocation.buffer in used]
            only = groups[using[0]] if len(using) == 1 else None
            # What is allocated around a loop keeps its values from round to round.
            if size <= STACK_BYTES and only and not only.parallel and only.loop is loop:
                local.setdefault(using[0], []).append(allocation)
            elif using:
                self.scratch.append(allocation.buffer)
        stages = []
        for i, group in enumerate(groups):
            first = i == 0 or groups[i - 1].loop is not group.loop
            own = [*local.get(i, []), *needed[i], *group.statements]
            if group.loop is None:
                stages.append(self._stage(i, own))
                continue
            stage = self._stage(i, [self._current_round(group.loop), *own])
            if first:
                span = sum(other.loop is group.loop for other in groups)
                stage = replace(stage, rounds=int(group.loop.extent.value), span=span)
            stages.append(stage)
        return KernelCode(
            name=self.name,
            argument_count=len(self.parameters),
            stages=tuple(stages),
            scratch=tuple(buffer_bytes(b) or 0 for b in self.scratch),
            task_scratch_bytes=self.task_scratch_bytes,
            serialised_loops=self.serialised_loops,
        )

    def _groups(
        self, statements: Sequence[tirx.Stmt], loop: tirx.For | None = None
    ) -> list[_Group]:
        """The statements by stages.

        Allocations, and definitions of views and of values that are no memory's, are set aside.
        """
        groups: list[_Group] = []

        def add(statement: tirx.Stmt) -> None:
            group = _Group([statement], loop)
            last = groups[-1] if groups and groups[-1].loop is loop else None
            if last is None or last.separate or group.separate:
                groups.append(group)
            else:
                last.statements.append(statement)

        for statement in statements:
            if isinstance(statement, tirx.AllocBuffer):
                self.allocations.append((statement, loop))
            elif isinstance(statement, tirx.DeclBuffer):
                self.definitions.append(statement)
            elif isinstance(statement, tirx.Bind):
                # A value that depends on memory must be read where it stands.
                if _reads_memory(statement) or _used_variables(statement) & self.placed:
                    self.placed.add(statement.var)
                    add(statement)
                else:
                    self.definitions.append(statement)
            elif loop is None and _is_in_rounds(statement):
                counter = tirx.decl_buffer((1,), "int32", "round")
                count = tirx.BufferLoad(counter, [_ZERO])
                add(tirx.BufferStore(counter, _ZERO, [_ZERO]))
                self.counters[statement] = counter
                self.scratch.append(counter)
                counting = tirx.BufferStore(counter, count + _ONE, [_ZERO])
                groups += self._groups([*_flatten(statement.body), counting], statement)
            else:
                add(statement)
        return groups

    def _current_round(self, loop: tirx.For) -> tirx.Stmt:
        """The loop's variable as a stage of it finds it."""
        count = tirx.BufferLoad(self.counters[loop], [_ZERO])
        return tirx.Bind(loop.loop_var, tirx.Cast(str(loop.loop_var.ty.dtype), count))

    def _stage(self, index: int, statements: list[tirx.Stmt]) -> Stage:
        begin, end = tirx.Var("begin", "int32"), tirx.Var("end", "int32")
        extent = 1
        last = statements[-1]
        ends, alone = _ends(last), not _is_parallel(last)
        if ends or not alone:
            extent = int(last.extent.value)
            data_type = str(last.loop_var.ty.dtype)
            first = tirx.Cast(data_type, begin) if data_type != "int32" else begin
            count = tirx.Cast(data_type, end - begin) if data_type != "int32" else end - begin
            if int(last.min.value):
                first = first + last.min
            statements[-1] = tirx.For(last.loop_var, first, count, tirx.ForKind.SERIAL, last.body)
        body = tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]
        body = self._serialise_inner_loops(body)
        task_buffers: list[tirx.Var] = []
        body = self._place_allocations(body, task_buffers)
        used = _used_variables(body)
        handles: list[tirx.Var] = []
        prologue: list[tirx.Stmt] = []
        aligned: list[tirx.Var] = []
        pointers = []
        every = [*self.parameters, *self.scratch]
        for position, buffer in enumerate(every):
            layout = _compact_layout(buffer)
            if buffer not in used and not any(variable in used for variable, _ in layout):
                continue
            handle = tirx.Var(f"{buffer.name}_data", PointerType(buffer.ty.dtype, "global"))
            prologue += [tirx.Bind(variable, value) for variable, value in layout]
            prologue.append(tirx.DeclBuffer(buffer, data=handle))
            handles.append(handle)
            pointers.append(position)
            if position >= len(self.parameters) or self.aligned[position]:
                aligned.append(handle)
        offset = 0
        task_scratch = []
        for buffer in task_buffers:
            handle = tirx.Var(f"{buffer.name}_task", PointerType(buffer.ty.dtype, "global"))
            prologue.append(tirx.DeclBuffer(buffer, data=handle))
            handles.append(handle)
            aligned.append(handle)
            task_scratch.append(offset)
            offset = align_up(offset + (buffer_bytes(buffer) or 0))
        self.task_scratch_bytes = max(self.task_scratch_bytes, offset)
        body = tirx.SeqStmt([*prologue, body, tirx.Return(IntImm("int32", 0))])
        for handle in aligned:
            body = tirx.AttrStmt(handle, "storage_alignment", IntImm("int32", ALIGNMENT), body)
        for attribute in self.imports:
            body = tirx.AttrStmt(attribute.node, attribute.attr_key, attribute.value, body)
        # LowerTVMBuiltin wants to know the device even where it has nothing to lower.
        body = tirx.AttrStmt(StringImm("default"), "device_id", IntImm("int32", 0), body)
        body = tirx.AttrStmt(StringImm("default"), "device_type", IntImm("int32", 1), body)
        symbol = f"{self.prefix}_k_{self.name}_{index}"
        function = tirx.PrimFunc([begin, end, *handles], body, ret_type=PrimType("int32"))
        attributes = {"global_symbol": symbol, "tirx.noalias": True}
        if "target" in self.function.attrs:
            attributes["target"] = self.function.attrs["target"]
        self.functions[symbol] = function.with_attr(attributes)
        return Stage(
            symbol,
            extent,
            tuple(pointers),
            tuple(task_scratch),
            ends=ends,
            alone=bool(ends) and alone,
        )

    def _serialise_inner_loops(self, body: tirx.Stmt) -> tirx.Stmt:
        def serial(loop: tirx.For) -> tirx.For:
            if loop.kind != tirx.ForKind.PARALLEL:
                return loop
            self.serialised_loops += 1
            return tirx.For(
                loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body,
                annotations=loop.annotations,
            )  # fmt: skip

        return tvm_ffi.structural_map(body, (tirx.For, serial))

    def _place_allocations(self, body: tirx.Stmt, task_buffers: list[tirx.Var]) -> tirx.Stmt:
        def place(allocation: tirx.AllocBuffer) -> tirx.Stmt:
            size = buffer_bytes(allocation.buffer)
            if size is None:
                raise UnsupportedKernelError(f"kernel {self.name} allocates a dynamic buffer")
            if size > STACK_BYTES:
                task_buffers.append(allocation.buffer)
                return tirx.Evaluate(IntImm("int32", 0))
            # Keeps LowerTVMBuiltin from turning it into a call for workspace memory.
            annotations = {"disable_lower_builtin": IntImm("bool", 1)}
            return tirx.AllocBuffer(allocation.buffer, annotations)

        return tvm_ffi.structural_map(body, (tirx.AllocBuffer, place))


def _compact_layout(buffer: tirx.Var) -> list[tuple[tirx.Var, IntImm]]:
    """Values for a buffer's symbolic offset and strides: it starts at 0 and is contiguous."""
    layout = []
    offset = buffer.ty.elem_offset
    if isinstance(offset, tirx.Var):
        layout.append((offset, IntImm(str(offset.ty.dtype), 0)))
    stride = 1
    pairs = list(zip(buffer.ty.shape, buffer.ty.strides, strict=False))
    for extent, variable in reversed(pairs):
        if isinstance(variable, tirx.Var):
            layout.append((variable, IntImm(str(variable.ty.dtype), stride)))
        stride *= int(extent.value)
    return layout


def _reads_memory(statement: tirx.Stmt) -> bool:
    found: list[tirx.Stmt] = []
    tvm_ffi.structural_walk(statement, (TensorLoad, found.append))
    return bool(found)


def split_kernel(
    name: str, function: tirx.PrimFunc, aligned: Sequence[bool], prefix: str = "tinsmith"
) -> tuple[KernelCode, dict[str, tirx.PrimFunc]]:
    """Split the lowered `function` into stages.

    `aligned` says, per parameter, whether its pointer is always a multiple of
    64; `prefix` starts the symbols' names. Raises `UnsupportedKernelError` for
    scalars and dynamic buffers.
    """
    splitter = _KernelSplitter(name, function, aligned, prefix)
    code = splitter.split()
    return code, splitter.functions
