"""Convolutions of few channels read channels-first data themselves."""

from __future__ import annotations

import tvm
from tvm import relax

from tinsmith.passes.graph.conditions import CHANNELS_LAST
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import integers, operator_name, static_shape

_TO_NHWC = (0, 2, 3, 1)


@tvm.transform.module_pass(opt_level=0, name="AbsorbInputTransposes")
class AbsorbInputTransposes:
    """Let a convolution of at most `max_channels` input channels read NCHW data directly.

    Before::

        a: (1, 224, 224, 3) = permute_dims(image: (1, 3, 224, 224), axes=[0, 2, 3, 1])
        y: (1, 112, 112, 64) = conv2d(a, const w: (7, 7, 3, 64), strides=2, padding=3,
                                      data_layout="NHWC", kernel_layout="HWIO")

    After::

        y: (1, 112, 112, 64) = conv2d(image, const w: (7, 7, 3, 64), strides=2, padding=3,
                                      data_layout="NCHW", kernel_layout="HWIO",
                                      out_layout="NHWC")

    With so few channels the kernel gains nothing from having them adjacent, and
    the transpose of a whole image is saved. Left alone: grouped convolutions,
    and wider ones, whose kernels read vectors of channels.
    """

    requires = (CHANNELS_LAST,)
    ensures = (CHANNELS_LAST,)

    def __init__(self, max_channels: int = 4) -> None:
        self.max_channels = max_channels

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return _Absorber(module, self.max_channels).run()


class _Absorber(BlockRewriter):
    def __init__(self, module: tvm.IRModule, max_channels: int) -> None:
        super().__init__(module)
        self._max_channels = max_channels

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        if operator_name(value) != "relax.nn.conv2d":
            return value
        attrs = value.attrs
        if (str(attrs.data_layout), str(attrs.out_layout)) != ("NHWC", "NHWC"):
            return value
        transpose = self.definition(value.args[0])
        if operator_name(transpose) != "relax.permute_dims" or transpose.attrs.axes is None:
            return value
        shape = static_shape(value.args[0])
        if integers(transpose.attrs.axes) != _TO_NHWC or shape is None or int(attrs.groups) != 1:
            return value
        if shape[3] > self._max_channels:
            return value
        return relax.op.nn.conv2d(
            transpose.args[0],
            value.args[1],
            strides=list(attrs.strides),
            padding=list(attrs.padding),
            dilation=list(attrs.dilation),
            data_layout="NCHW",
            kernel_layout=attrs.kernel_layout,
            out_layout="NHWC",
            out_dtype=attrs.out_dtype,
        )
