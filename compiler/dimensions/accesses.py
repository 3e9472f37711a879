"""Which elements of which buffers a piece of TensorIR reads and writes, and in which loops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Expr, Range, TensorLoad
from tvm.s_tir import SBlock, SBlockRealize
from tvm.sym import Analyzer
from tvm.target.codegen import llvm_get_intrinsic_name
from tvm.tirx import Stmt, Var


class UnknownAccessError(Exception):
    """A statement whose reads and writes cannot be told."""


@dataclass(frozen=True)
class Access:
    """One read or write of an element of `buffer`, whose `shape` and `indices` are those used.

    `indices` are None where the address is handed on: anything may be read or written. `steers`
    tells of a read that decides where another access goes.
    """

    buffer: Var
    shape: tuple[int, ...]
    indices: tuple[Expr, ...] | None
    writes: bool
    steers: bool = False
    steered: bool = False


@dataclass
class Accesses:
    """The accesses of a statement, and the loops around them, the outermost first."""

    found: list[Access] = field(default_factory=list)
    loops: list[tuple[Var, Expr, Expr]] = field(default_factory=list)
    local: set[Var] = field(default_factory=set)

    def analyzer(self) -> Analyzer:
        """One that knows the range of each loop."""
        analyzer = Analyzer()
        for variable, first, extent in self.loops:
            analyzer.bind(variable, Range.from_min_extent(first, extent))
        return analyzer

    def loops_of(self, expressions: Iterable[Expr]) -> list[tuple[Var, Expr, Expr]]:
        """The loops that values of `expressions` depend on, the outermost first."""
        used: set[Var] = set()
        for expression in expressions:
            tvm_ffi.structural_walk(expression, (Var, used.add))
        needed = []
        for loop in reversed(self.loops):
            if loop[0] in used:
                needed.append(loop)
                for bound in loop[1:]:
                    tvm_ffi.structural_walk(bound, (Var, used.add))
        return needed[::-1]


def accesses_of(statement: Stmt, views: Mapping[Var, Var]) -> Accesses:
    """The accesses of `statement`; `views` names the buffer behind those that are views of one.

    Raises UnknownAccessError for statements that are none of the loops, conditions, blocks and
    stores that kernels consist of.
    """
    collector = _Collector(views)
    collector.visit(statement)
    return collector.result


class _Collector:
    def __init__(self, views: Mapping[Var, Var]) -> None:
        self.views = dict(views)
        self.bound: dict[Var, Expr] = {}
        self.lanes: dict[int, Var] = {}
        self.result = Accesses()

    def visit(self, statement: Stmt) -> None:
        if isinstance(statement, tirx.SeqStmt):
            for part in statement.seq:
                self.visit(part)
        elif isinstance(statement, tirx.For):
            self._loop(statement.loop_var, statement.min, statement.extent)
            self.visit(statement.body)
        elif isinstance(statement, SBlockRealize):
            self._block(statement.block)
        elif isinstance(statement, tirx.IfThenElse):
            self._reads(statement.condition)
            self.visit(statement.then_case)
            if statement.else_case is not None:
                self.visit(statement.else_case)
        elif isinstance(statement, tirx.AttrStmt):
            self.visit(statement.body)
        elif isinstance(statement, tirx.AllocBuffer):
            self.result.local.add(statement.buffer)
        elif isinstance(statement, tirx.DeclBuffer):
            self.views[statement.buffer] = root_of(statement, self.views)
        elif isinstance(statement, tirx.Bind):
            self._reads(statement.value)
            self.bound[statement.var] = self._plain(statement.value)
        elif isinstance(statement, tirx.Evaluate):
            self._reads(statement.value)
        elif isinstance(statement, tirx.BufferStore):
            self._reads(statement.value)
            self._element(statement.buffer, statement.indices, writes=True)
        else:
            raise UnknownAccessError(f"a statement of the kind {type(statement).__name__}")

    def _loop(self, variable: Var, first: Expr, extent: Expr) -> None:
        self._reads(extent)
        self.result.loops.append((variable, self._plain(first), self._plain(extent)))

    def _block(self, block: SBlock) -> None:
        if block.match_buffers:
            raise UnknownAccessError("a block that matches buffers")
        self.result.local.update(block.alloc_buffers)
        for iteration in block.iter_vars:
            self._loop(iteration.var, iteration.dom.min, iteration.dom.extent)
        if block.init is not None:
            self.visit(block.init)
        self.visit(block.body)

    def _reads(self, expression: Any, steers: bool = False) -> None:
        """All reads in an expression; those inside of the indices of others steer these."""
        handed_on: list[tuple[Any, bool]] = []
        steering: set[Any] = set()
        loads: list[TensorLoad] = []

        def load(node: TensorLoad) -> None:
            loads.append(node)
            for index in node.indices:
                tvm_ffi.structural_walk(index, (TensorLoad, steering.add))

        def call(node: Call) -> None:
            for argument in node.args:
                address = _address(argument)
                if address is not None:
                    handed_on.append((address, not _only_reads(node)))

        tvm_ffi.structural_walk(expression, (TensorLoad, load))
        tvm_ffi.structural_walk(expression, (Call, call))
        for node in loads:
            self._element(
                node.source, node.indices, writes=False, steers=steers or node in steering
            )
        for buffer, written in handed_on:
            root = self.views.get(buffer, buffer)
            self.result.found.append(Access(root, (), None, writes=False))
            if written:
                self.result.found.append(Access(root, (), None, writes=True))

    def _element(self, buffer: Var, indices: Any, writes: bool, steers: bool = False) -> None:
        if writes:
            for index in indices:
                self._reads(index, steers=True)
        nested: list[TensorLoad] = []
        for index in indices:
            tvm_ffi.structural_walk(index, (TensorLoad, nested.append))
        shape = tuple(int(extent) for extent in buffer.ty.shape)
        plain = tuple(self._scalar(self._plain(index)) for index in indices)
        root = self.views.get(buffer, buffer)
        self.result.found.append(Access(root, shape, plain, writes, steers, bool(nested)))

    def _scalar(self, index: Expr) -> Expr:
        """The index of one lane: a variable stands for the lane."""
        if isinstance(index, tirx.Ramp):
            kind, lanes = str(index.base.ty.dtype), int(index.lanes)
            if lanes not in self.lanes:
                lane = self.lanes[lanes] = Var("lane", kind)
                self._loop(lane, tirx.IntImm(kind, 0), tirx.IntImm(kind, lanes))
            return index.base + self.lanes[lanes] * index.stride
        if isinstance(index, tirx.Broadcast):
            return index.value
        return index

    def _plain(self, expression: Expr) -> Expr:
        """The expression in terms of loop variables alone."""
        if not self.bound:
            return expression
        bound = self.bound
        return tvm_ffi.structural_mutate(expression, [(Var, lambda v, _: bound.get(v, v))])


def _address(argument: Any) -> Var | None:
    """The buffer whose address an argument of a call is."""
    if isinstance(argument, Call) and _name(argument).endswith("address_of"):
        element = argument.args[0]
        return element.source if isinstance(element, TensorLoad) else None
    return argument if isinstance(argument, Var) and tirx.is_buffer_var(argument) else None


def _name(call: Call) -> str:
    return str(getattr(call.op, "name", ""))


def _only_reads(call: Call) -> bool:
    """Whether an instruction that is given an address reads from there, or asks for it ahead."""
    if "call_llvm" not in _name(call) or not isinstance(call.args[0], tirx.IntImm):
        return False
    instruction = str(llvm_get_intrinsic_name(int(call.args[0])))
    return "load" in instruction or "prefetch" in instruction


def root_of(declaration: tirx.DeclBuffer, views: Mapping[Var, Var]) -> Var:
    """The buffer whose memory a declared one names."""
    used: list[Var] = []
    tvm_ffi.structural_walk(declaration.data, (Var, used.append))
    for variable in used:
        if variable in views:
            return views[variable]
        if tirx.is_buffer_var(variable):
            return variable
    raise UnknownAccessError("a view of memory that is no buffer's")
