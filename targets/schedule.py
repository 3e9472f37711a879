"""Schedules every kernel of a module: the first template of its backend that matches.

Its decisions are those of a record, or the template's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx import PrimFunc

from tinsmith.targets.registry import backend_of
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import UNFIT, Decisions, KernelReport, Match, Template
from tinsmith.targets.unscheduled import Unscheduled


class RecordLookup(Protocol):
    """Where the decisions of earlier searches are found."""

    def find(self, function: PrimFunc, template: Template, spec: TargetSpec) -> Decisions | None:
        """The best decisions known for this function with this template, or None."""


def match_template(function: PrimFunc, spec: TargetSpec) -> tuple[Template, Match]:
    """The template of the machine's backend that schedules `function`, with its match."""
    for template in backend_of(spec).templates:
        match = template.match(function, spec)
        if match is not None:
            return template, match
    raise ValueError("no template matches; the last of a backend must match every kernel")


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
    """The scheduled function, finished by the machine's backend, its form verified."""
    backend = backend_of(spec)
    scheduled = backend.finish(template.apply(function, match, decisions, spec), spec)
    if template.sums_products(match):
        scheduled = backend.flush_denormals(scheduled, spec)
    if _interface(scheduled) != _interface(function):
        raise ValueError(f"template {template.name} changed the parameters of a kernel")
    if template.name != Unscheduled.name:
        tvm.tirx.analysis.verify_ssa(scheduled)
    return scheduled


def schedule_module(
    module: tvm.IRModule,
    spec: TargetSpec,
    records: RecordLookup | None = None,
    entries_first: bool = False,
) -> tuple[tvm.IRModule, tuple[KernelReport, ...]]:
    """Schedules all kernels of `module` for the machine `spec`.

    With `entries_first` tasks compute the entries of a batch one after the other, if they can.
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
            done[key] = _schedule(variable.name_hint, anonymous, spec, records, entries_first)
        scheduled, report = done[key]
        if symbol is not None:
            scheduled = scheduled.with_attr("global_symbol", symbol)
        result.update_func(variable, scheduled)
        reports.append(replace(report, name=variable.name_hint))
    return result, tuple(reports)


def _schedule(
    name: str,
    function: PrimFunc,
    spec: TargetSpec,
    records: RecordLookup | None,
    entries_first: bool,
) -> tuple[PrimFunc, KernelReport]:
    template, match = match_template(function, spec)
    default = template.default(match, spec)
    found = records.find(function, template, spec) if records is not None else None
    usable = found is not None and template.has(match, found, spec)
    decisions: Mapping[str, int] = dict(found) if usable and found is not None else default
    if entries_first:
        decisions = template.entries_first(match, decisions)
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
