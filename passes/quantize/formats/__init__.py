"""Number formats: how real values are written with few bits. Needs numpy, not TVM."""

from passes.quantize.formats.base import NumberFormat, QuantizedArray
from passes.quantize.formats.binary import Binary
from passes.quantize.formats.codebook import KMeansCodebook
from passes.quantize.formats.floating import BFLOAT16, FLOAT16, FloatingPoint
from passes.quantize.formats.granularity import (
    FormatError,
    Granularity,
    PerChannel,
    PerGroup,
    PerTensor,
    largest_group,
)
from passes.quantize.formats.packing import pack, unpack
from passes.quantize.formats.power_of_two import PowerOfTwo
from passes.quantize.formats.uniform import MeanCentred, UniformAffine, UniformSymmetric

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
