"""Convolutions and matrix products in bfloat16."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import tvm
from tvm import relax
from tvm.ir import GenericConst

from tinsmith.passes.graph.conditions import CHANNELS_LAST, PRODUCTS_OF_NUMBERS
from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import constant_array, operator_name
from tinsmith.passes.quantize.formats.floating import BFLOAT16
from tinsmith.passes.quantize.precision_placement import (
    ON_STORED,
    PrecisionPlacement,
    is_split_item,
    place_precision,
)

_FORMATS = {"bfloat16": BFLOAT16}


@tvm.transform.module_pass(opt_level=0, name="ReducePrecision")
class ReducePrecision:
    """Multiply and store in a shorter float; add and compute everything else in float32.

    Before::

        c: (1, 8, 8, 16) = conv2d(x: (1, 8, 8, 4), const w: (3, 3, 4, 16) float32)
        y: (1, 8, 8, 16) = relu(c)
        p: (1, 4, 4, 16) = max_pool2d(y)
        z: (1, 4, 4, 8) = conv2d(p, const v: (1, 1, 16, 8) float32)

    After::

        xb: bfloat16 = astype(x)
        c = conv2d(xb, const w bfloat16, out_dtype="float32")
        y = relu(c)
        yb: bfloat16 = astype(y)
        p: bfloat16 = max_pool2d(yb)
        z = conv2d(p, const v bfloat16, out_dtype="float32")

    Every reader of a stored tensor that computes in float32 gets an `astype` of its own, so
    that fusion can draw it into the reader's kernel. `only` names the results of the
    operators to convert (None: all that have a kernel), `keep_float` those to leave.

    Left alone: what `precision_placement.place_precision` leaves in float32 (products of two
    computed operands, groups with an odd number of channels), and parameters and results of
    the function, which keep their dtype.

    Raises ValueError for a `dtype` other than "bfloat16".
    """

    requires = (CHANNELS_LAST, PRODUCTS_OF_NUMBERS)

    def __init__(
        self,
        dtype: str = "bfloat16",
        only: Collection[str] | None = None,
        keep_float: Collection[str] = (),
    ) -> None:
        if dtype not in _FORMATS:
            raise ValueError(f"{dtype}: operators compute in {', '.join(_FORMATS)} or float32")
        self.dtype = dtype
        self.only = None if only is None else frozenset(only)
        self.keep_float = frozenset(keep_float)

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        placement = place_precision(module, self.only, self.keep_float)
        return _Reducer(module, placement, self.dtype).run()


class _Reducer(BlockRewriter):
    def __init__(self, module: tvm.IRModule, placement: PrecisionPlacement, dtype: str) -> None:
        super().__init__(module)
        self._graph = Dataflow(module)
        self._operators = frozenset(placement.operators)
        self._stored = placement.stored
        self._dtype = dtype

    def begin(self, bindings: list[relax.Binding]) -> None:
        # By original variable: what is stored narrow, and narrow copies of what is stored wide.
        self._narrow: dict[relax.Var, relax.Expr] = {}
        self._copies: dict[relax.Var, relax.Expr] = {}

    def operand(self, variable: relax.Var) -> relax.Expr:
        """In float32: widened anew for each reader of a tensor that is stored narrow."""
        narrow = self._narrow.get(variable)
        if narrow is None:
            return super().operand(variable)
        return self.emit(relax.op.astype(narrow, "float32"))

    def visit(self, variable: relax.Var, value: relax.Expr) -> relax.Expr:
        node = self._graph.node(variable)
        if node is None:
            return super().visit(variable, value)
        inside = isinstance(variable, relax.DataflowVar) and not node.escapes
        if node.name in self._operators:
            new = self.emit(self._product(value), variable.name)
        elif inside and self._moves_stored(node.name, value):
            moved = self._moved(value)
            self._narrow[variable] = self.emit(moved, variable.name)
            return self._narrow[variable]
        elif inside and is_split_item(node) and node.operands[0].variable in self._narrow:
            items = self._narrow[node.operands[0].variable]
            self._narrow[variable] = self.emit(
                relax.TupleGetItem(items, value.index), variable.name
            )
            return self._narrow[variable]
        else:
            new = super().visit(variable, value)
        if inside and node.name in self._stored:
            self._narrow[variable] = self._rounded(new, variable)
        return new

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        """Everything else computes in float32."""
        return value

    def _moves_stored(self, name: str, value: relax.Expr) -> bool:
        """Whether the call moves stored elements to where they are stored as well."""
        if operator_name(value) == "relax.split":
            return value.args[0] in self._narrow
        return name in self._stored and operator_name(value) in ON_STORED

    def _moved(self, value: relax.Expr) -> relax.Expr:
        call: Any = value
        data, *others = call.args
        if isinstance(data, relax.Tuple):
            data = relax.Tuple([self._narrowed(field) for field in data.fields])
        else:
            data = self._narrowed(data)
        return relax.Call(call.op, [data, *others], call.attrs, call.ty_args)

    def _product(self, value: relax.Expr) -> relax.Expr:
        call: Any = value
        data, weights = self._narrowed(call.args[0]), self._constant(call.args[1])
        if operator_name(value) == "relax.matmul":
            return relax.op.matmul(data, weights, out_dtype="float32")
        attrs = call.attrs
        return relax.op.nn.conv2d(
            data,
            weights,
            strides=list(attrs.strides),
            padding=list(attrs.padding),
            dilation=list(attrs.dilation),
            groups=attrs.groups,
            data_layout=attrs.data_layout,
            kernel_layout=attrs.kernel_layout,
            out_layout=attrs.out_layout,
            out_dtype="float32",
        )

    def _narrowed(self, expr: relax.Expr) -> relax.Expr:
        """The short form of an original operand."""
        if isinstance(expr, GenericConst):
            return self._constant(expr)
        if expr in self._narrow:
            return self._narrow[expr]
        if expr not in self._copies:
            self._copies[expr] = self._rounded(self.operand(expr), expr)
        return self._copies[expr]

    def _rounded(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        name = f"{variable.name}_{self._dtype}"
        return self.emit(relax.op.astype(value, self._dtype), name)

    def _constant(self, expr: relax.Expr) -> relax.Expr:
        array = constant_array(expr)
        if array is None:
            return relax.op.astype(expr, self._dtype)
        return relax.const(_FORMATS[self._dtype].encode(array, {}), self._dtype)
