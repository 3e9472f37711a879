"""Recognise kernels that a front end made too early, and give them back their operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import tvm
import tvm_ffi
from tvm import relax, te, tirx, topi
from tvm.ir import Call, TensorLoad
from tvm.sym.analyzer import Analyzer

from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import operator_name, static_shape
from tinsmith.targets.template import TEMPLATE_ATTRIBUTE

_ELEMENTWISE: dict[str, tuple[Callable[..., te.Tensor], Callable[..., relax.Expr]]] = {
    "maximum": (topi.maximum, relax.op.maximum),
    "minimum": (topi.minimum, relax.op.minimum),
}


@tvm.transform.module_pass(opt_level=0, name="RaisePrimitives")
class RaisePrimitives:
    """Turn `call_tir` of a known kernel back into the operator that it computes.

    TVM's ONNX front end emits `Clip` and `Pad` as finished kernels, which no
    graph pass can see through. Before::

        t = call_tir(maximum, (x: (1, 8), const ()), out=(1, 8))
        y = call_tir(pad, (t,), out=(1, 10))

    After::

        t: (1, 8) = maximum(x: (1, 8), const ())
        y: (1, 10) = pad(t, pad_width=[0, 0, 1, 1], pad_value=0)

    A kernel is only replaced if it is structurally equal to the one that TVM
    makes for that operator and these shapes. Constant padding and `minimum` /
    `maximum` are recognised; every other kernel stays as it is, in particular
    those with a `tinsmith.template` attribute.
    """

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return _Raiser(module).run()


class _Raiser(BlockRewriter):
    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        if operator_name(value) != "relax.call_tir" or not isinstance(value.args[1], relax.Tuple):
            return value
        kernel = self.module[value.args[0]]
        inputs = list(value.args[1].fields)
        if TEMPLATE_ATTRIBUTE in kernel.attrs or any(
            static_shape(operand) is None for operand in inputs
        ):
            return value
        name = value.args[0].name_hint.rstrip("0123456789").rstrip("_")
        if name in _ELEMENTWISE and len(inputs) == 2:
            compute, operator = _ELEMENTWISE[name]
            if _is_kernel_of(kernel, inputs, compute):
                return operator(*inputs)
        if name == "pad" and len(inputs) == 1:
            return self._padding(value, kernel, inputs[0])
        return value

    def _padding(self, call: relax.Call, kernel: tirx.PrimFunc, data: relax.Expr) -> relax.Expr:
        found = next(_selections(kernel.body), None)
        shape, padded = static_shape(data), static_shape(call)
        if found is None or shape is None or padded is None:
            return call
        fill, offsets = found
        if len(offsets) != len(shape) or len(padded) != len(shape):
            return call
        after = [
            total - extent - before
            for total, extent, before in zip(padded, shape, offsets, strict=True)
        ]
        if not _is_kernel_of(
            kernel, [data], lambda tensor: topi.nn.pad(tensor, offsets, after, fill)
        ):
            return call
        widths = [width for pair in zip(offsets, after, strict=True) for width in pair]
        return relax.op.nn.pad(data, widths, pad_mode="constant", pad_value=float(fill.value))


def _is_kernel_of(
    kernel: tirx.PrimFunc, inputs: list[relax.Expr], compute: Callable[..., te.Tensor]
) -> bool:
    """Whether `kernel` is what `compute` gives for inputs of these shapes."""
    builder = relax.BlockBuilder()
    parameters = [relax.Var(f"p{position}", operand.ty) for position, operand in enumerate(inputs)]
    with builder.function("main", parameters):
        builder.emit_func_output(builder.emit_te(compute, *parameters, primfunc_name_hint="kernel"))
    expected = builder.get()["kernel"]
    return bool(tvm_ffi.structural_equal(kernel.body, expected.body, map_free_vars=True))


def _selections(body: tirx.Stmt) -> Iterator[tuple[tirx.Expr, list[int]]]:
    """The fill value and the offsets of each `if_then_else(inside, data[i - offset], fill)`."""
    found: list[tuple[tirx.Expr, list[int]]] = []
    analyzer = Analyzer()

    def visit(node: tirx.BufferStore) -> None:
        value = node.value
        if not (isinstance(value, Call) and value.op.name.endswith("if_then_else")):
            return
        load, fill = value.args[1], value.args[2]
        if not isinstance(load, TensorLoad) or not isinstance(fill, tirx.FloatImm | tirx.IntImm):
            return
        differences = [
            analyzer.simplify(position - index)
            for position, index in zip(node.indices, load.indices, strict=True)
        ]
        if all(isinstance(difference, tirx.IntImm) for difference in differences):
            found.append((fill, [int(difference) for difference in differences]))

    tvm_ffi.structural_walk(body, (tirx.BufferStore, visit))
    return iter(found)
