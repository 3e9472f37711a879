"""What all CPU families share: templates for fixed-width vectors, TVM's LLVM code generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tvm.tirx import PrimFunc

from tinsmith.targets.algorithms import AlgorithmLookup
from tinsmith.targets.backend import Backend, Legalizer, Lowering
from tinsmith.targets.cpu.elementary_functions import lower_elementary_functions
from tinsmith.targets.cpu.fused_sums import fuse_products
from tinsmith.targets.cpu.nan_propagation import (
    expand_maxima,
    propagate_nan,
    propagate_nan_in_kernels,
)
from tinsmith.targets.cpu.operators.algorithms import ConvolutionAlgorithms
from tinsmith.targets.cpu.operators.legalize import legalize_map
from tinsmith.targets.cpu.operators.quantization import quantization_legalizers
from tinsmith.targets.cpu.reproducible import is_reproducible
from tinsmith.targets.cpu.schedules.channelwise import ChannelwiseTemplate
from tinsmith.targets.cpu.schedules.convolution import ConvolutionTemplate
from tinsmith.targets.cpu.schedules.forest import ForestTemplate
from tinsmith.targets.cpu.schedules.generic import Generic
from tinsmith.targets.cpu.schedules.injective import Injective
from tinsmith.targets.cpu.schedules.layer_norm import Normalization
from tinsmith.targets.cpu.schedules.matmul import MatmulTemplate
from tinsmith.targets.cpu.schedules.recurrent import Recurrent
from tinsmith.targets.cpu.schedules.reduction import RowReduction
from tinsmith.targets.cpu.schedules.softmax import Softmax
from tinsmith.targets.cpu.schedules.winograd import WinogradTemplate
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Template
from tinsmith.targets.unscheduled import Unscheduled


class CpuBackend(Backend):
    """The part of a CPU family that needs no instruction of its own."""

    templates: ClassVar[tuple[Template, ...]] = (
        ConvolutionTemplate(),
        WinogradTemplate(),
        ChannelwiseTemplate(),
        MatmulTemplate(),
        Recurrent(),
        ForestTemplate(),
        Softmax(),
        Normalization(),
        RowReduction(),
        Injective(),
        Generic(),
        Unscheduled(),
    )
    algorithms = ConvolutionAlgorithms()

    def legalizers(
        self, spec: TargetSpec, algorithms: AlgorithmLookup | None = None
    ) -> Mapping[str, Legalizer]:
        return legalize_map(spec, algorithms)

    def conversions(self) -> Mapping[str, Legalizer]:
        return quantization_legalizers()

    def finish(self, function: PrimFunc, spec: TargetSpec) -> PrimFunc:
        return fuse_products(propagate_nan(lower_elementary_functions(function)), spec)

    def lowering(self) -> Lowering:
        return Lowering(unscheduled=(propagate_nan_in_kernels,), last=(expand_maxima,))

    def is_reproducible(self, function: PrimFunc) -> bool:
        return is_reproducible(function)
