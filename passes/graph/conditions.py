"""What a pass may rely on, and what it promises: conditions that are checked on the graph.

A pass states them as `requires` and `ensures`, tuples of class attributes; who runs passes one
by one (`tinsmith.compiler.pipeline`) checks the former before and the latter after it. A condition
says something of what passes rewrite: bindings of dataflow blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm import relax

from tinsmith.passes.graph.tensors import element_type, operator_name, static_shape

# What is computed channels first or channels last.
SPATIAL_OPERATORS = frozenset(
    {
        "relax.nn.conv2d",
        "relax.nn.max_pool2d",
        "relax.nn.avg_pool2d",
        "relax.nn.adaptive_avg_pool2d",
        "relax.image.resize2d",
    }
)
_PRODUCTS = ("relax.nn.conv2d", "relax.matmul")
_CODES = ("int8", "uint8")


@dataclass(frozen=True)
class Condition:
    """`told` completes "the graph must have ..."; `breaks` says whether a value contradicts it."""

    told: str
    breaks: Callable[[relax.Expr], bool]

    def violation(self, module: tvm.IRModule) -> str | None:
        """The name of the first tensor that contradicts the condition, None if it holds."""
        for _, function in module.functions_items():
            if not isinstance(function, relax.Function):
                continue
            if not isinstance(function.body, relax.SeqExpr):
                continue
            for block in function.body.blocks:
                if not isinstance(block, relax.DataflowBlock):
                    continue
                for binding in block.bindings:
                    value = binding.value
                    if isinstance(value, relax.Call) and self.breaks(value):
                        return str(binding.var.name)
        return None


def layouts(call: relax.Call) -> tuple[str, str]:
    """The layouts of the data and of the result of one of `SPATIAL_OPERATORS`."""
    layout = str(getattr(call.attrs, "data_layout", None) or call.attrs.layout)
    return layout, str(getattr(call.attrs, "out_layout", None) or layout)


def _is_channels_first(value: relax.Expr) -> bool:
    if operator_name(value) not in SPATIAL_OPERATORS or len(static_shape(value) or ()) != 4:
        return False
    return layouts(value)[1] == "NCHW"


def _multiplies_codes(value: relax.Expr) -> bool:
    return operator_name(value) in _PRODUCTS and element_type(value.args[0]) in _CODES


def _is_product(value: relax.Expr) -> bool:
    name = operator_name(value) or ""
    return name == "relax.matmul" or name.startswith("relax.nn.")


# From `ConvertLayout` on: what number formats and kernels know.
CHANNELS_LAST = Condition("convolutions, pools and resizes channels last", _is_channels_first)
# Until `LowerIntegers`: codes are stored and read back, but not computed with.
PRODUCTS_OF_NUMBERS = Condition("no products of 8-bit codes yet", _multiplies_codes)
# From `Legalize` on.
KERNELS = Condition("kernels in place of products and layers", _is_product)
