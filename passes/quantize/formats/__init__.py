"""Number formats: how real values are written with few bits. Needs numpy, not TVM."""

from tinsmith.passes.quantize.formats.base import NumberFormat, QuantizedArray
from tinsmith.passes.quantize.formats.binary import Binary
from tinsmith.passes.quantize.formats.codebook import KMeansCodebook
from tinsmith.passes.quantize.formats.floating import BFLOAT16, FLOAT16, FloatingPoint
from tinsmith.passes.quantize.formats.granularity import (
    FormatError,
    Granularity,
    PerChannel,
    PerGroup,
    PerTensor,
    largest_group,
)
from tinsmith.passes.quantize.formats.packing import pack, unpack
from tinsmith.passes.quantize.formats.power_of_two import PowerOfTwo
from tinsmith.passes.quantize.formats.uniform import MeanCentred, UniformAffine, UniformSymmetric

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "Binary",
    "FloatingPoint",
    "FormatError",
    "Granularity",
    "KMeansCodebook",
    "MeanCentred",
    "NumberFormat",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "PowerOfTwo",
    "QuantizedArray",
    "UniformAffine",
    "UniformSymmetric",
    "largest_group",
    "pack",
    "unpack",
]
