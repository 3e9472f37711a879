"""The machinery that the graph passes share: rewriting dataflow blocks binding by binding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import tvm
from tvm import relax


def variables_in(value: relax.Expr) -> Iterable[relax.Var]:
    """The variables read by the value of one binding, once per occurrence."""
    if isinstance(value, relax.Var):
        yield value
    elif isinstance(value, relax.Call):
        for argument in value.args:
            yield from variables_in(argument)
    elif isinstance(value, relax.Tuple):
        for element in value.fields:
            yield from variables_in(element)
    elif isinstance(value, relax.TupleGetItem):
        yield from variables_in(value.tuple_value)


class BlockRewriter:
    """Rewrites every dataflow block of every Relax function of a module.

    A pass derives from this class and overrides `rewrite`. Bindings are visited
    in order; `rewrite` sees the binding's value with its operands already
    replaced by the new ones, and answers the expression to bind instead: the
    value itself (nothing to do), another value, or a variable or constant that
    stands for it. Further bindings are made with `emit`. Bindings that nobody
    reads any more are dropped at the end of a block.

    Only dataflow blocks are touched: bindings outside them, branches of
    conditionals and `PrimFunc`s stay as they are, and so do the variables that
    a block hands to the outside and the matches of shapes known at run time.
    """

    def __init__(self, module: tvm.IRModule) -> None:
        self.module = module
        self._builder = relax.BlockBuilder(module)
        self._new_bindings: list[relax.Binding] = []
        self._replacement: dict[relax.Var, relax.Expr] = {}
        self._definition: dict[relax.Var, relax.Expr] = {}
        self._old_uses: Counter[relax.Var] = Counter()
        self._uses: Counter[relax.Var] = Counter()
        self._fresh_names = 0
        self._known_names: set[str] = set()

    def run(self) -> tvm.IRModule:
        """The rewritten module; the given one is not changed."""
        functions = {}
        for name, function in self.module.functions_items():
            if isinstance(function, relax.Function):
                functions[name] = self._rewrite_function(function)
        # Prim functions may be shared by several callers and are kept; an unused
        # one is removed by dead code elimination.
        result = self._builder.get()
        updated = {
            name: functions.get(name, function) for name, function in result.functions_items()
        }
        rewritten = tvm.IRModule(
            updated, attrs=self.module.attrs, global_infos=self.module.global_infos
        )
        # Fills in the types of the sequences and functions that were put together here.
        return relax.transform.Normalize()(rewritten)

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        """What to bind to the original `variable` instead of `value`."""
        raise NotImplementedError

    def begin(self, bindings: list[relax.Binding]) -> None:
        """Called with the original bindings before each dataflow block."""

    def operand(self, variable: relax.Var) -> relax.Expr:
        """The new expression that stands for an original variable when it is read."""
        return self._replacement.get(variable, variable)

    def emit(self, value: relax.Expr, name: str | None = None) -> relax.Expr:
        """Bind `value` to a new variable; variables and constants are answered as they are."""
        if not isinstance(value, relax.Call | relax.Tuple | relax.TupleGetItem):
            return value
        value = self._builder.normalize(value)
        if name is None:
            name = self._fresh_name()
        variable = relax.DataflowVar(name, value.ty)
        self._bind(variable, value)
        return variable

    def _fresh_name(self) -> str:
        """A name that no variable of the original block has: names identify tensors in reports."""
        while True:
            self._fresh_names += 1
            name = f"t{self._fresh_names}"
            if name not in self._known_names:
                return name

    def definition(self, expr: relax.Expr) -> Any:
        """The value bound to a (new) variable; None for parameters and non-variables."""
        return self._definition.get(expr) if isinstance(expr, relax.Var) else None

    def use_count(self, expr: relax.Expr) -> int:
        """How often a new variable is read by what the original block still is to read."""
        return self._uses[expr] if isinstance(expr, relax.Var) else 0

    def replace(self, variable: relax.Var, expr: relax.Expr) -> None:
        """Let `expr` stand for the original `variable` from here on."""
        self._replacement[variable] = expr
        if isinstance(expr, relax.Var):
            self._uses[expr] += self._old_uses[variable]

    def substitute(self, value: relax.Expr) -> relax.Expr:
        """`value` with its operands replaced; the very same object if none changed."""
        if isinstance(value, relax.Var):
            return self.operand(value)
        if isinstance(value, relax.Call):
            arguments = [self.substitute(argument) for argument in value.args]
            if all(new.same_as(old) for new, old in zip(arguments, value.args, strict=True)):
                return value
            return relax.Call(value.op, arguments, value.attrs, value.ty_args)
        if isinstance(value, relax.Tuple):
            fields = [self.substitute(element) for element in value.fields]
            if all(new.same_as(old) for new, old in zip(fields, value.fields, strict=True)):
                return value
            return relax.Tuple(fields)
        if isinstance(value, relax.TupleGetItem):
            source = self.substitute(value.tuple_value)
            if source.same_as(value.tuple_value):
                return value
            if isinstance(source, relax.Tuple):
                return source.fields[value.index]
            return relax.TupleGetItem(source, value.index)
        return value

    def visit(self, variable: relax.Var, value: relax.Expr) -> relax.Expr:
        """Rewrite one binding and bind the result; passes that track more override this."""
        new = self.rewrite(self._builder.normalize(self.substitute(value)), variable)
        return self.emit(new, variable.name)

    def _bind(self, variable: relax.Var, value: relax.Expr) -> None:
        self._new_bindings.append(relax.VarBinding(variable, value))
        self._definition[variable] = value

    def _rewrite_function(self, function: relax.Function) -> relax.Function:
        if not isinstance(function.body, relax.SeqExpr):
            return function
        blocks = []
        changed = False
        for block in function.body.blocks:
            if isinstance(block, relax.DataflowBlock):
                new_block = self._rewrite_block(block)
                changed = changed or new_block is not block
                blocks.append(new_block)
            else:
                blocks.append(block)
        if not changed:
            return function
        body = relax.SeqExpr(blocks, function.body.body)
        return relax.Function(
            function.params, body, function.ret_ty, function.is_pure, function.attrs
        )

    def _rewrite_block(self, block: relax.DataflowBlock) -> relax.DataflowBlock:
        bindings = list(block.bindings)
        self._new_bindings = []
        self._known_names.update(binding.var.name for binding in bindings)
        self._replacement = {}
        self._definition = {}
        self._uses = Counter()
        self._old_uses = Counter(
            read for binding in bindings for read in variables_in(binding.value)
        )
        for binding in bindings:
            if not isinstance(binding.var, relax.DataflowVar):
                self._old_uses[binding.var] += 1
        self.begin(bindings)
        for binding in bindings:
            if isinstance(binding, relax.MatchCast):
                self._match_cast(binding)
                continue
            new = self.visit(binding.var, binding.value)
            if isinstance(binding.var, relax.DataflowVar):
                self.replace(binding.var, new)
            else:
                self._hand_out(binding.var, new)
        live = self._without_dead(self._new_bindings)
        return relax.DataflowBlock(live)

    def _match_cast(self, binding: relax.MatchCast) -> None:
        """Keep a check of a shape that is known at run time: it defines what its extents are."""
        value = self.substitute(binding.value)
        self._new_bindings.append(relax.MatchCast(binding.var, value, binding.ty))
        self._definition[binding.var] = value
        self.replace(binding.var, binding.var)

    def _hand_out(self, variable: relax.Var, new: relax.Expr) -> None:
        """Bind an output of the block; it keeps its variable because others read it."""
        value = new
        last = self._new_bindings[-1] if self._new_bindings else None
        if isinstance(last, relax.VarBinding) and last.var.same_as(new):
            # Bind the value itself rather than an alias of the variable just made.
            value = self._new_bindings.pop().value
        self._bind(variable, value)
        self.replace(variable, variable)

    @staticmethod
    def _without_dead(bindings: list[relax.Binding]) -> list[relax.Binding]:
        live: list[relax.Binding] = []
        read: set[relax.Var] = set()
        for binding in reversed(bindings):
            if isinstance(binding.var, relax.DataflowVar) and binding.var not in read:
                continue
            live.append(binding)
            read.update(variables_in(binding.value))
        return live[::-1]
