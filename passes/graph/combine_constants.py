"""Equal constants made one."""

from __future__ import annotations

import hashlib

import tvm
from tvm import relax
from tvm.ir import GenericConst

from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import constant_array


@tvm.transform.module_pass(opt_level=0, name="CombineConstants")
class CombineConstants:
    """Let equal constants be the same object.

    Before::

        a = add(x, const A)        # A and B hold the same numbers
        b = add(x, const B)

    After::

        a = add(x, const A)
        b = add(x, const A)

    Common subexpression elimination compares constants by identity, so it finds
    more after this pass; and weights shared by several layers are stored once.
    Bits are compared, hence 0.0 and -0.0 stay two constants.
    """

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return _Combiner(module).run()


class _Combiner(BlockRewriter):
    def begin(self, bindings: list[relax.Binding]) -> None:
        self._first: dict[tuple[str, tuple[int, ...], bytes], GenericConst] = {}
        self._seen: dict[GenericConst, GenericConst] = {}

    def substitute(self, value: relax.Expr) -> relax.Expr:
        if not isinstance(value, GenericConst):
            return super().substitute(value)
        if value not in self._seen:
            self._seen[value] = self._representative(value)
        return self._seen[value]

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        return value

    def _representative(self, value: GenericConst) -> GenericConst:
        array = constant_array(value)
        if array is None:
            return value
        digest = hashlib.blake2b(array.tobytes(), digest_size=16).digest()
        return self._first.setdefault((str(array.dtype), array.shape, digest), value)
