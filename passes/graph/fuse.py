"""Kernels fused with the elementwise ones around them."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tinsmith.passes.graph.conditions import KERNELS
from tinsmith.passes.graph.fused_groups import name_fused_groups
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import element_count, element_type, operator_name, static_shape

# Of Relax's OpPatternKind: elementwise and broadcasting kernels are below it.
_INJECTIVE = 2
# Of operands: no other kernel than a concatenation has so many.
_MANY = 32


@tvm.transform.module_pass(opt_level=0, name="Fuse")
class Fuse:
    """Join kernels so that intermediate results stay in registers.

    Before::

        a = call_tir(convolution, (x, const w), out=(1, 8, 8, 16))
        b = call_tir(add, (a, const bias), out=(1, 8, 8, 16))
        c = call_tir(add, (b, residual), out=(1, 8, 8, 16))
        y = call_tir(relu, (c,), out=(1, 8, 8, 16))

    After::

        y = call_tir(fused_convolution_add_add_relu, (x, const w, const bias, residual),
                     out=(1, 8, 8, 16))

    Every kernel is classed (elementwise, broadcast, injective, reduction,
    fusable at its output, opaque) and TVM's dominator-tree fusion joins them:
    elementwise chains with each other and behind convolutions and matrix
    products. Reshapes are not kernels by now, and end a fused group. The name
    of a group's last operator stays; `kernel_calls` tells all that it computes.

    Left alone, against TVM's habit: a computed operand that is repeated over
    the result, such as the gate of a squeeze-and-excite block
    `multiply(x: (1, 56, 56, 64), gate: (1, 1, 1, 64))` or what is enlarged by
    a nearest-neighbour resize. Fused, it would be computed anew for each use. What
    is made of one byte each (a `dequantize`) is: it costs less than to store it.
    Nor is a concatenation of many tensors fused into the next one.
    """

    requires = (KERNELS,)

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        module = relax.transform.AnnotateTIROpPattern()(module)
        module = _BarrierInserter(module).run()
        module = name_fused_groups(module, relax.transform.FuseOps()(module))
        module = relax.transform.FuseTIR()(module)
        return _BarrierRemover(module).run()


class _BarrierInserter(BlockRewriter):
    """Put a reshape that changes nothing before operands that must not be fused."""

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        if operator_name(value) != "relax.call_tir" or not isinstance(value.args[1], relax.Tuple):
            return value
        kernel = self.module[value.args[0]]
        pattern = kernel.attrs.get("op_pattern") if kernel.attrs else None
        shape = static_shape(value)
        if pattern is None or shape is None or int(pattern) > _INJECTIVE:
            return value
        operands = list(value.args[1].fields)
        if int(pattern) == _INJECTIVE and len(operands) != 1:
            # Concatenation and the like read every element once.
            fields = [self._guarded_if_joined(operand) for operand in operands]
        else:
            fields = [self._guarded(operand, element_count(shape)) for operand in operands]
        if all(new.same_as(old) for new, old in zip(fields, operands, strict=True)):
            return value
        arguments = [value.args[0], relax.Tuple(fields), *value.args[2:]]
        return relax.Call(value.op, arguments, value.attrs, value.ty_args)

    def _guarded(self, operand: relax.Expr, result_count: int) -> relax.Expr:
        shape = static_shape(operand)
        if shape is None or operator_name(self.definition(operand)) != "relax.call_tir":
            return operand
        # Padding, too, makes a tensor larger, but repeats nothing.
        if 2 * element_count(shape) > result_count or self._widens_bytes(operand):
            return operand
        return self.emit(relax.op.reshape(operand, shape))

    def _guarded_if_joined(self, operand: relax.Expr) -> relax.Expr:
        """A concatenation of many tensors is a kernel of its own: its expression is deep."""
        kernel: Any = self.definition(operand)
        shape = static_shape(operand)
        if shape is None or operator_name(kernel) != "relax.call_tir":
            return operand
        sources = kernel.args[1]
        if not isinstance(sources, relax.Tuple) or len(sources.fields) <= _MANY:
            return operand
        return self.emit(relax.op.reshape(operand, shape))

    def _widens_bytes(self, operand: relax.Expr) -> bool:
        """Whether the operand is computed from a single byte for each of its elements."""
        kernel: Any = self.definition(operand)
        sources = list(kernel.args[1].fields)
        pattern = self.module[kernel.args[0]].attrs.get("op_pattern")
        return (
            pattern is not None
            and int(pattern) < _INJECTIVE
            and len(sources) == 1
            and element_type(sources[0]) in ("uint8", "int8")
            and static_shape(sources[0]) == static_shape(operand)
        )


class _BarrierRemover(BlockRewriter):
    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        if operator_name(value) != "relax.reshape":
            return value
        shape = static_shape(value)
        same = shape is not None and static_shape(value.args[0]) == shape
        return value.args[0] if same else value
