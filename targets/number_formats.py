"""Which operators a family of targets computes in integers, in which number formats; floats.

An operator *absent* from `integer_operators` has no integer kernel: it stays
float. An operator listed there with the format None has one, but it is not to
be used (slower or less exact than float on that family); a report says so.
The operators in `in_registers` work on dequantised values inside a kernel whose
inputs and outputs are integers; those in `same_scale` move or select elements,
so that they run on the stored integers as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tinsmith.targets.spec import TargetSpec


@dataclass(frozen=True)
class IntegerFormat:
    """Dtypes of an integer operator: data, constant right operand, and accumulator.

    `weight_axis` is the axis of the constant operand (counted from its end)
    along which scales may differ: that of the output channels. A right operand
    that is computed, too, has to be packed at run time: that pays where a transpose
    does it on the way, or from `least_rows` rows of the left one on.
    """

    activation: str
    weight: str
    accumulator: str = "int32"
    weight_axis: int = -1
    least_rows: int = 4


@dataclass(frozen=True)
class NumberFormats:
    """What one family of targets does with integers.

    `activation` is the dtype in which activations are stored. `weight_bits` is
    the largest number of bits of a weight with which no integer operation
    saturates on the way to the accumulator: AVX2's `vpmaddubsw` adds two
    products of uint8 and int8 in 16 bits, which holds for weights of 7 bits.
    """

    family: str
    activation: str
    integer_operators: Mapping[str, IntegerFormat | None]
    in_registers: frozenset[str]
    same_scale: frozenset[str]
    weight_bits: int = 8


# Elementwise operators are in registers everywhere and not listed here.
_IN_REGISTERS = frozenset(
    {
        "relax.concat",
        "relax.image.resize2d",
        "relax.mean",
        "relax.nn.adaptive_avg_pool2d",
        "relax.nn.avg_pool2d",
    }
)
_SAME_SCALE = frozenset(
    {
        "relax.broadcast_to",
        "relax.max",
        "relax.nn.max_pool2d",
        "relax.permute_dims",
        "relax.reshape",
        "relax.split",
        "relax.strided_slice",
        "relax.take",
    }
)


def byte_formats(family: str, activation: str) -> NumberFormats:
    """The table of a family whose products take `activation` (uint8 or int8) by int8."""
    product = IntegerFormat(activation, "int8")
    return NumberFormats(
        family=family,
        activation=activation,
        integer_operators=MappingProxyType({"relax.nn.conv2d": product, "relax.matmul": product}),
        in_registers=_IN_REGISTERS,
        same_scale=_SAME_SCALE,
    )


def float_precisions(spec: TargetSpec) -> tuple[str, ...]:
    """The floats in which kernels for `spec` multiply; all of them add in float32.

    No kernel multiplies float16.
    """
    return ("float32", "bfloat16") if spec.bfloat16 else ("float32",)
