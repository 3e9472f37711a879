"""Emits a program stage by stage; intermediate buffers are kept in memory between stages."""

from __future__ import annotations

from collections.abc import Mapping

from tvm import tirx
from tvm.tirx import PrimFunc, Stmt, Var
from tvm.tirx.buffer import buffer_data

from tinsmith.targets.buffers import buffer_dtype, buffer_size
from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.domain import Assignment, Box, flat_offset, flatten_loads
from tinsmith.targets.cpu.elementwise_loops import emit_box
from tinsmith.targets.cpu.program import Program, Stage
from tinsmith.targets.spec import TargetSpec


def flat_views(program: Program) -> tuple[dict[Var, Var], list[Stmt]]:
    """One-dimensional views of all parameters, and the statements that declare them."""
    flat: dict[Var, Var] = {}
    declarations: list[Stmt] = []
    for parameter in program.function.params:
        data = buffer_data(parameter)
        view = tirx.decl_buffer(
            (buffer_size(parameter),),
            buffer_dtype(parameter),
            f"{parameter.name}_flat",
            data=data,
            data_alignment=parameter.ty.data_alignment,
        )
        flat[parameter] = view
        declarations.append(tirx.DeclBuffer(view, data=data))
    return flat, declarations


def finish(program: Program, statements: list[Stmt]) -> PrimFunc:
    """The program's function with a new body."""
    function = program.function
    return PrimFunc(
        list(function.params), loops.sequence(statements), function.ret_type, attrs=function.attrs
    )


def stage_assignment(stage: Stage, flat: Mapping[Var, Var]) -> Assignment:
    """The stage's store on flat buffers."""
    offset = flatten_loads(flat_offset(stage.buffer, stage.indices), flat)
    return Assignment(flat[stage.buffer], offset, flatten_loads(stage.value, flat))


def add_intermediates(program: Program, flat: dict[Var, Var]) -> list[Stmt]:
    """Allocations for the intermediate buffers, entered into `flat`."""
    allocations: list[Stmt] = []
    for stage in program.stages:
        if stage.buffer not in flat:
            size = (buffer_size(stage.buffer),)
            flat[stage.buffer] = tirx.decl_buffer(size, buffer_dtype(stage.buffer), stage.name)
            allocations.append(tirx.AllocBuffer(flat[stage.buffer]))
    return allocations


def emit_stages(program: Program, spec: TargetSpec) -> PrimFunc:
    """Loops for a program without reductions."""
    flat, statements = flat_views(program)
    statements.extend(add_intermediates(program, flat))
    for stage in program.stages:
        box = Box(stage.axes, (stage_assignment(stage, flat),))
        statements.extend(emit_box(box, spec))
    return finish(program, statements)
