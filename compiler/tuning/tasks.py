"""What there is to tune in a lowered model: its distinct kernels, by the time they take."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import GenericConst
from tvm.tirx import PrimFunc

from tinsmith.compiler.module.base import StepTime
from tinsmith.compiler.module.signature import numpy_dtype
from tinsmith.compiler.tuning.batch import Kernel
from tinsmith.compiler.tuning.records import Subject, decisions_key, workload_key
from tinsmith.passes.graph.tensors import operator_name
from tinsmith.targets.schedule import match_template
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match, Template

# A kernel with less than this share of the time cannot matter.
LEAST_SHARE = 0.002
_MOST_CANDIDATES = 4096


@dataclass(frozen=True)
class Task:
    """One kernel to tune. `seconds` are those of all its `calls` in a run of the model.

    `space` are the candidates, the default first; `numbers` describe the workload: its
    integers by name. `fits` tells whether decisions of a record can be used at all.
    """

    name: str
    subject: Subject
    kernel: Kernel
    default: Decisions
    space: tuple[Decisions, ...]
    numbers: dict[str, int]
    calls: int = 0
    seconds: float = 0.0
    share: float = 0.0
    fits: Callable[[Decisions], bool] = lambda decisions: True


def distinct_kernels(fused: tvm.IRModule, spec: TargetSpec) -> dict[Subject, Task]:
    """The kernels of a fused, unscheduled module, those with nothing to decide included."""
    calls = _first_calls(fused)
    resident_bytes = _constant_bytes(fused)
    found: dict[Subject, Task] = {}
    for variable, function in sorted(fused.functions.items(), key=lambda i: i[0].name_hint):
        name = variable.name_hint
        if not isinstance(function, PrimFunc) or name not in calls:
            continue
        if function.attrs is not None and "global_symbol" in function.attrs:
            function = function.without_attr("global_symbol")
        template, match = match_template(function, spec)
        subject = Subject(template.name, template.version, workload_key(function))
        if subject in found:
            known = found[subject]
            found[subject] = replace(known, name=f"{known.name} {name}")
            continue
        found[subject] = Task(
            name=name,
            subject=subject,
            kernel=Kernel(
                function,
                calls[name].constants,
                len(function.params) - calls[name].operands,
                resident_bytes,
            ),
            default=template.default(match, spec),
            space=candidates(template, match, spec),
            numbers=_numbers(match, spec),
            fits=partial(template.has, match, spec=spec),
        )
    return found


def with_times(tasks: Sequence[Task], steps: Sequence[StepTime]) -> list[Task]:
    """The tasks with calls, seconds and shares from a profile, slowest first."""
    total = sum(step.seconds for step in steps)
    timed = []
    for task in tasks:
        own = [step.seconds for step in steps if step.kernel in task.name.split()]
        seconds = sum(own)
        timed.append(
            replace(task, calls=len(own), seconds=seconds, share=seconds / total if total else 0.0)
        )
    return sorted(timed, key=lambda task: (-task.seconds, task.name))


def candidates(template: Template, match: Match, spec: TargetSpec) -> tuple[Decisions, ...]:
    """All that is worth trying, the default first; a random part of spaces that are too large."""
    default = template.default(match, spec)
    space = template.space(match, spec)
    names = list(space)
    found: dict[Any, Decisions] = {decisions_key(default): default}
    for values in itertools.product(*space.values()):
        decisions = dict(zip(names, values, strict=True))
        if template.worth_trying(match, decisions, spec):
            found[decisions_key(decisions)] = decisions
    listed = list(found.values())
    if len(listed) > _MOST_CANDIDATES:
        chosen = np.random.default_rng(0).permutation(len(listed) - 1)[: _MOST_CANDIDATES - 1]
        listed = [default, *(listed[1 + int(i)] for i in np.sort(chosen))]
    return tuple(listed)


def _numbers(match: Match, spec: TargetSpec) -> dict[str, int]:
    """The integers that describe a workload; text becomes one of a few numbers."""
    numbers = {"flops": match.flops, "bytes": match.bytes, "cores": spec.cores}
    if is_dataclass(match.workload):
        for item in fields(match.workload):
            value = getattr(match.workload, item.name)
            if isinstance(value, (bool, int)) and abs(value) < 2**31:
                numbers[item.name] = max(0, int(value))
            elif isinstance(value, str):
                numbers[item.name] = sum(value.encode())
    return numbers


@dataclass(frozen=True)
class _FirstCall:
    """How the model calls a kernel first: its constant operands by position, all operands."""

    constants: dict[int, np.ndarray]
    operands: int


def _first_calls(fused: tvm.IRModule) -> dict[str, _FirstCall]:
    found: dict[str, _FirstCall] = {}
    body = fused["main"].body
    blocks = body.blocks if isinstance(body, relax.SeqExpr) else ()
    for binding in (binding for block in blocks for binding in block.bindings):
        if operator_name(binding.value) != "relax.call_tir":
            continue
        name = binding.value.args[0].name_hint
        operands = list(binding.value.args[1].fields)
        if name not in found:
            constants = {
                position: _array(operand)
                for position, operand in enumerate(operands)
                if isinstance(operand, GenericConst)
            }
            found[name] = _FirstCall(constants, len(operands))
    return found


def _array(constant: GenericConst) -> np.ndarray:
    """The value as a module's inputs have it: bfloat16 as bits."""
    array = np.ascontiguousarray(constant.value.numpy())
    return array.view(numpy_dtype(str(constant.ty.dtype)))


def _constant_bytes(fused: tvm.IRModule) -> int:
    """Bytes of all constants in `main`: what a run of the model reads besides activations."""
    found: dict[Any, int] = {}

    def visit(constant: GenericConst) -> None:
        tensor = constant.value
        found[constant] = math.prod(tensor.shape) * (tvm.DataType(str(tensor.dtype)).bits + 7) // 8

    tvm_ffi.structural_walk(fused["main"].body, (GenericConst, visit))
    return sum(found.values())
