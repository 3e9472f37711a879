"""`tinsmith compile`: a model file to a module."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compiler.cli import output
from compiler.cli.options import AsJson
from compiler.config import CompileConfig, parse_constant_option, parse_shape_option


@output.reported
def compile_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model to compile.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the module to.")],
    target: Annotated[
        str, typer.Option(help="The machine to compile for; see `tinsmith targets`.")
    ] = "native",
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N,N,...", help="Shape of an input with dynamic dimensions."),
    ] = None,
    constant: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Replace an input by a constant."),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads to schedule for; 0: one for each core.")
    ] = 0,
    dump: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the graph after each pass there.")
    ] = None,
    timing: Annotated[bool, typer.Option("--timing", help="Print what each pass took.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compile a model into a module: a folder with a shared library, its manifest and a runner.

    **Example:** `tinsmith compile resnet50.onnx --target native --shape input=1,3,224,224 -o out/`
    """
    config = CompileConfig(
        target=target,
        shapes=dict(map(parse_shape_option, shape or [])),
        constants=dict(map(parse_constant_option, constant or [])),
        threads=threads,
        dump=dump,
        timing=timing,
    )
    from compiler.api import compile_to  # imports TVM

    with output.progress_bar(f"compile {model.name}", hidden=as_json) as show:
        report = compile_to(model, out, config=config, progress=show)
    if as_json:
        output.print_json(report.to_dict())
        return
    for remark in report.notes:
        output.note(remark)
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items())
    output.say(f"{report.path}: {report.summary()}")
    output.say(f"phases: {phases}; peak memory {output.size(report.peak_memory_bytes)}")
    if timing:
        output.print_table(
            "passes",
            ("pass", "ms"),
            [(name, output.milliseconds(seconds)) for name, seconds in report.pass_seconds],
        )
