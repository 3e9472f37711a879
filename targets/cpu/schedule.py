"""Schedules every kernel of a module: the first template that matches, its record or default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx import PrimFunc

from tinsmith.targets.cpu.elementary_functions import lower_elementary_functions
from tinsmith.targets.cpu.fused_sums import fuse_products
from tinsmith.targets.cpu.nan_propagation import propagate_nan
from tinsmith.targets.cpu.schedules.channelwise import ChannelwiseTemplate
from tinsmith.targets.cpu.schedules.convolution import ConvolutionTemplate
from tinsmith.targets.cpu.schedules.forest import ForestTemplate
from tinsmith.targets.cpu.schedules.generic import Generic, Unscheduled
from tinsmith.targets.cpu.schedules.injective import Injective
from tinsmith.targets.cpu.schedules.layer_norm import Normalization
from tinsmith.targets.cpu.schedules.matmul import MatmulTemplate
from tinsmith.targets.cpu.schedules.recurrent import Recurrent
from tinsmith.targets.cpu.schedules.reduction import RowReduction
from tinsmith.targets.cpu.schedules.softmax import Softmax
from tinsmith.targets.cpu.schedules.winograd import WinogradTemplate
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import UNFIT, Decisions, KernelReport, Match, Template
from tinsmith.targets.x86.bfloat16 import use_bfloat16_instructions
from tinsmith.targets.x86.schedules.amx_convolution import AmxConvolutionTemplate
from tinsmith.targets.x86.schedules.amx_matmul import AmxMatmulTemplate

# The first match wins: the specific families stand before the general ones.
TEMPLATES: tuple[Template, ...] = (
    AmxConvolutionTemplate(),
    AmxMatmulTemplate(),
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


class RecordLookup(Protocol):
    """Where the decisions of earlier searches are found."""

    def find(self, function: PrimFunc, template: Template, spec: TargetSpec) -> Decisions | None:
        """The best decisions known for this function with this template, or None."""


def match_template(function: PrimFunc, spec: TargetSpec) -> tuple[Template, Match]:
    """The template that schedules `function`, with its match (at least `Unscheduled`)."""
    for template in TEMPLATES:
        match = template.match(function, spec)
        if match is not None:
            return template, match
    raise ValueError("no template matches; `Unscheduled` must be the last of TEMPLATES")


def _interface(function: PrimFunc) -> list[tuple[tuple[int | str, ...], str]]:
    """Shape and dtype of each parameter; an extent known at run time by its name."""
    return [
        (
            tuple(int(e) if isinstance(e, tirx.IntImm) else str(e) for e in p.ty.shape),
            str(p.ty.dtype),
        )
        if isinstance(p.ty, tirx.BufferType)
        else ((), str(p.ty))
        for p in function.params
    ]


def schedule_function(
    function: PrimFunc, template: Template, match: Match, decisions: Decisions, spec: TargetSpec
) -> PrimFunc:
    """The scheduled function, its elementary functions lowered, its form verified."""
    scheduled = lower_elementary_functions(template.apply(function, match, decisions, spec))
    scheduled = fuse_products(propagate_nan(scheduled), spec)
    scheduled = use_bfloat16_instructions(scheduled, spec)
    if _interface(scheduled) != _interface(function):
        raise ValueError(f"template {template.name} changed the parameters of a kernel")
    if template.name != Unscheduled.name:
        tvm.tirx.analysis.verify_ssa(scheduled)
    return scheduled


def schedule_module(
    module: tvm.IRModule, spec: TargetSpec, records: RecordLookup | None = None
) -> tuple[tvm.IRModule, tuple[KernelReport, ...]]:
    """Schedules all kernels of `module` for the machine `spec`.

    Functions that are structurally equal are scheduled once. The reports name
    the template of each kernel: `generic` and `unscheduled` mark what has no
    template of its own.
    """
    result = module.clone()
    reports: list[KernelReport] = []
    done: dict[Any, tuple[PrimFunc, KernelReport]] = {}
    for variable, function in sorted(module.functions.items(), key=lambda i: i[0].name_hint):
        if not isinstance(function, PrimFunc):
            continue
        symbol = function.attrs.get("global_symbol") if function.attrs else None
        anonymous = function.without_attr("global_symbol") if symbol is not None else function
        key = tvm_ffi.StructuralKey(anonymous)
        if key not in done:
            done[key] = _schedule(variable.name_hint, anonymous, spec, records)
        scheduled, report = done[key]
        if symbol is not None:
            scheduled = scheduled.with_attr("global_symbol", symbol)
        result.update_func(variable, scheduled)
        reports.append(replace(report, name=variable.name_hint))
    return result, tuple(reports)


def _schedule(
    name: str, function: PrimFunc, spec: TargetSpec, records: RecordLookup | None
) -> tuple[PrimFunc, KernelReport]:
    template, match = match_template(function, spec)
    default = template.default(match, spec)
    found = records.find(function, template, spec) if records is not None else None
    usable = found is not None and template.has(match, found, spec)
    decisions: Mapping[str, int] = dict(found) if usable and found is not None else default
    scheduled = schedule_function(function, template, match, decisions, spec)
    report = KernelReport(
        name=name,
        template=template.name,
        template_version=template.version,
        decisions=decisions,
        source="record" if usable else "default" if found is None else UNFIT,
        flops=match.flops,
        bytes=match.bytes,
        arithmetic=match.arithmetic,
    )
    return scheduled, report
