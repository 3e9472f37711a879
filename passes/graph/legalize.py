"""Operators lowered to kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tvm
from tvm import relax

# Shape changes move no data: they stay operators, which the executor makes an alias of.
ALIASES = ("relax.reshape",)


@tvm.transform.module_pass(opt_level=0, name="Legalize")
class Legalize:
    """Lower every operator to `call_tir` of a `PrimFunc`.

    Before::

        y: (1, 8, 8, 16) = conv2d(x: (1, 8, 8, 4), const w: (3, 3, 4, 16), ...)
        z: (1, 1024) = reshape(y, (1, 1024))

    After::

        y = call_tir(convolution, (x, const packed weights), out=(1, 8, 8, 16))
        z: (1, 1024) = reshape(y, (1, 1024))

    `definitions` maps operator names to functions of the block builder and the
    call (as `targets.cpu.operators.legalize_map` makes them); operators that it
    does not name get TVM's own definition. Reshapes stay operators.
    """

    def __init__(
        self, definitions: Mapping[str, Callable[[relax.BlockBuilder, relax.Call], relax.Expr]]
    ) -> None:
        self.definitions = dict(definitions)

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return relax.transform.LegalizeOps(self.definitions, skip_ops=list(ALIASES))(module)
