"""x86-64: VNNI, AVX2, AVX512-BF16 and AMX besides the portable templates."""

from __future__ import annotations

from dataclasses import replace

from tvm.tirx import PrimFunc

from tinsmith.targets.backend import Lowering
from tinsmith.targets.cpu.backend import CpuBackend
from tinsmith.targets.cpu.schedules.channelwise import ChannelwiseTemplate
from tinsmith.targets.number_formats import byte_formats
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.x86 import arithmetic  # noqa: F401  (registers this family's)
from tinsmith.targets.x86.bfloat16 import spread_bfloat16, use_bfloat16_instructions
from tinsmith.targets.x86.denormals import flush_denormals
from tinsmith.targets.x86.schedules.amx_convolution import AmxConvolutionTemplate
from tinsmith.targets.x86.schedules.amx_matmul import AmxMatmulTemplate
from tinsmith.targets.x86.schedules.depthwise_dots import DepthwiseDots
from tinsmith.targets.x86.tile_permission import C_SOURCE as TILE_CHECK

# VNNI and AMX multiply unsigned by signed bytes.
FORMATS = byte_formats("x86", "uint8")


class X86Backend(CpuBackend):
    """x86-64-v3 and later."""

    formats = FORMATS
    templates = (
        AmxConvolutionTemplate(),
        AmxMatmulTemplate(),
        *(
            DepthwiseDots() if isinstance(template, ChannelwiseTemplate) else template
            for template in CpuBackend.templates
        ),
    )

    def finish(self, function: PrimFunc, spec: TargetSpec) -> PrimFunc:
        return use_bfloat16_instructions(super().finish(function, spec), spec)

    def flush_denormals(self, function: PrimFunc, spec: TargetSpec) -> PrimFunc:
        return flush_denormals(function)

    def lowering(self) -> Lowering:
        return replace(super().lowering(), vectorized=(spread_bfloat16,))

    def machine_check(self, spec: TargetSpec) -> str:
        return TILE_CHECK if "amx_tile" in spec.cpu_features else ""


BACKEND = X86Backend()
