"""`tinsmith bench`: a module beside its peers."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from tinsmith.compiler.cli import early, output
from tinsmith.compiler.cli.options import AsJson, Dims, ModelOption, ModulePath, Threads, parse_dims

if TYPE_CHECKING:
    from tinsmith.compiler.evaluate.bench import BenchReport


@output.reported
def bench_module(
    module: ModulePath,
    model: ModelOption = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each contestant.")] = 50,
    threads: Threads = 2,
    precision: Annotated[
        str, typer.Option(help="What peers compute a float model in: float32 or bfloat16.")
    ] = "float32",
    level: Annotated[
        str | None, typer.Option(metavar="NAME", help="The target to run, of a module for several.")
    ] = None,
    dims: Dims = None,
    as_json: AsJson = False,
) -> None:
    """Time a module, ONNX Runtime and OpenVINO, taking turns on the same cores.

    **Example:** `tinsmith bench out/ --model resnet50.onnx --runs 100 --threads 2`
    """
    early.check_module(module)
    early.check_model(model)
    with output.progress_bar("bench", hidden=as_json) as show:
        from tinsmith.compiler.evaluate.bench import bench

        with ExitStack() as stack:
            if level is not None:
                from tinsmith.compiler.module.levels import copy_level
                from tinsmith.compiler.module.loader import folder_of
                from tinsmith.compiler.scratch import ScratchFolder

                folder = stack.enter_context(folder_of(module))
                scratch = stack.enter_context(ScratchFolder())
                module = copy_level(folder, level, scratch / "module")
            report = bench(
                module,
                model,
                runs,
                threads,
                show,
                precision,
                sizes=parse_dims(dims or ()),
            )
    if as_json:
        output.print_json(report.to_dict())
    else:
        print_report(report)


def print_report(report: BenchReport) -> None:
    """The table of a BenchReport; who is missing is named below it."""
    output.print_table(
        f"latency in ms, {report.threads} threads",
        ("", "version", "median", "p95", "best", "runs", "times the module"),
        [
            (
                timing.label,
                timing.version,
                f"{timing.median:.3f}",
                f"{timing.p95:.3f}",
                f"{timing.best:.3f}",
                len(timing.milliseconds),
                f"{report.ratio(timing):.2f}",
            )
            for timing in report.timings
        ],
        left=2,
    )
    for label, reason in report.missing.items():
        output.say(f"missing: {label}: {reason}")
