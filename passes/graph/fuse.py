"""Kernels fused with the elementwise ones around them."""

from __future__ import annotations

import tvm
from tvm import relax


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
    products. Reshapes are not kernels by now, and end a fused group.
    """

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        steps = tvm.transform.Sequential(
            [
                relax.transform.AnnotateTIROpPattern(),
                relax.transform.FuseOps(),
                relax.transform.FuseTIR(),
            ]
        )
        return steps(module)
