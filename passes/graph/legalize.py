"""Operators lowered to kernels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import tvm
from tvm import relax

from tinsmith.passes.graph.conditions import KERNELS
from tinsmith.passes.graph.tensors import operator_name

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
    call (as `tinsmith.targets.cpu.operators.legalize_map` makes them); operators that it
    does not name get TVM's own definition. Reshapes stay operators.

    The operators in `first` are lowered before all others, so that their definitions
    can look up what computes their operands, and take it in (a padding, say).
    """

    ensures = (KERNELS,)

    def __init__(
        self,
        definitions: Mapping[str, Callable[[relax.BlockBuilder, relax.Call], relax.Expr]],
        first: Collection[str] = (),
    ) -> None:
        self.definitions = dict(definitions)
        self.first = frozenset(first)

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        later = _operators(module) - self.first
        module = relax.transform.LegalizeOps(self.definitions, skip_ops=sorted(later))(module)
        # What was taken in must not count as a reader when kernels are fused.
        module = relax.transform.DeadCodeElimination()(module)
        return relax.transform.LegalizeOps(self.definitions, skip_ops=list(ALIASES))(module)


def _operators(module: tvm.IRModule) -> set[str]:
    """The names of all operators that the module calls."""
    found: set[str] = set()

    def note(call: relax.Call) -> None:
        name = operator_name(call)
        if name is not None:
            found.add(name)

    for _, function in module.functions_items():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(
                function, lambda node: note(node) if isinstance(node, relax.Call) else None
            )
    return found
