"""Inner tensors of a graph as further results, for calibration."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax

from tinsmith.passes.graph.dataflow import Dataflow


@tvm.transform.module_pass(opt_level=0, name="ExposeTensors")
class ExposeTensors:
    """Let `main` return the tensors of the given names too, behind its own results.

    Before::

        a: (1, 8, 8, 16) = relu(x)
        y = conv2d(a, const w)
        return y

    After (names=("a",))::

        a: (1, 8, 8, 16) = relu(x)
        y = conv2d(a, const w)
        return (y, a)

    With `only`, the tensors take the place of the results. Parameters among the names are left
    out: who calls the function has them. Names are those of `Dataflow`. Raises ValueError for
    a name that no tensor has.
    """

    def __init__(self, names: Sequence[str], only: bool = False) -> None:
        self.names = tuple(names)
        self.only = only

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        graph = Dataflow(module)
        result = module["main"].body.body
        bound = graph.node(result)
        if bound is not None and isinstance(bound.value, relax.Tuple):
            result = bound.value
        results = list(result.fields) if isinstance(result, relax.Tuple) else [result]
        if self.only:
            results = []
        for name in self.names:
            node = graph.named(name)
            if node is None:
                raise ValueError(f"no tensor of `main` is named {name}")
            if node.value is not None:
                results.append(node.variable)
        return _with_results(module, results)


def _with_results(module: tvm.IRModule, results: Sequence[relax.Expr]) -> tvm.IRModule:
    """The module with a `main` that returns `results`, variables bound anywhere in it."""
    function = module["main"]
    outside = {v: relax.Var(v.name, v.ty) for v in results if isinstance(v, relax.DataflowVar)}
    blocks = []
    for block in function.body.blocks:
        bindings = list(block.bindings)
        if isinstance(block, relax.DataflowBlock):
            # A variable of the block becomes one that is seen outside by an alias of it.
            bindings += [
                relax.VarBinding(outside[binding.var], binding.var)
                for binding in bindings
                if binding.var in outside
            ]
            blocks.append(relax.DataflowBlock(bindings))
        else:
            blocks.append(block)
    returned = relax.Tuple([outside.get(v, v) for v in results])
    updated = relax.Function(
        function.params,
        relax.SeqExpr(blocks, returned),
        relax.TupleType([v.ty for v in results]),
        function.is_pure,
        function.attrs,
    )
    functions = {name: f for name, f in module.functions_items() if name.name_hint != "main"}
    functions[tvm.ir.GlobalVar("main")] = updated
    exposed = tvm.IRModule(functions, attrs=module.attrs, global_infos=module.global_infos)
    # Aliases are propagated, so that the binding itself is what is returned.
    return relax.transform.CanonicalizeBindings()(relax.transform.Normalize()(exposed))
