"""`tinsmith tune`: search the decisions of a model's kernels on this machine or on boards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinsmith.compiler.cli import early, output
from tinsmith.compiler.cli.options import AsJson, Constant, Shape
from tinsmith.compiler.cli.tables import fitted
from tinsmith.compiler.config import CompileConfig, parse_constant_options, parse_shape_options
from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.plain_text import plain_line
from tinsmith.compiler.quantization.config import QuantizationConfig

if TYPE_CHECKING:
    from tinsmith.compiler.tuning.report import JobView, TaskRow, TuneOptions, TuneReport

_ROWS = 24
_COLUMNS = ("kernel", "template", "calls", "share", "us", "best", "trials", "failed", "")


@output.reported
def tune_model(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL.onnx", help="The model to tune.")
    ] = None,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="This machine, or the boards of --rpc.")
    ] = "native",
    minutes: Annotated[float, typer.Option(help="Wall time to spend, about.")] = 10.0,
    trials: Annotated[int, typer.Option(help="Most candidates for one kernel.")] = 160,
    tasks: Annotated[
        int, typer.Option(help="How many kernels, slowest first; 0: all that matter.")
    ] = 0,
    log: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Records and trials; default: the user's cache."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Search on from where a finished job stopped.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Search again, and forget earlier trials.")
    ] = False,
    shape: Shape = None,
    constant: Constant = None,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads to schedule for; 0: one for each core.")
    ] = 0,
    quantize: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Tune the quantised model.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="PATH", help="Samples, or `random`.")
    ] = None,
    rpc: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Measure on boards: the tracker of TVM's RPC."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="NAME", help="The boards' name, with --rpc.")
    ] = None,
    job: Annotated[
        Path | None,
        typer.Option(metavar="JOBS.toml", help="Tune several models, as the file says."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search faster kernels for a model, and remember them for every later compilation.

    **Example:** `tinsmith tune resnet50.onnx --target native --minutes 10`

    Interrupt it at any time: the same command goes on. When it has come to its end, the same
    command has nothing to do, and with `--resume` searches on. **Several models:** `tinsmith
    tune --job jobs.toml`, with a `[[job]]` for each: `model = "resnet50.onnx"`, and any of
    `target`, `minutes`, `trials`, `tasks`, `seed`, `threads`, `shapes`, `quantize`,
    `calibration`, `rpc`, `key`. **Boards:** `--target cortex-a76 --rpc 127.0.0.1:9190 --key pi5`;
    RPC has no password and runs any code: keep it on loopback, tunnel it by SSH
    (docs/remote-boards.md).
    """
    from tinsmith.compiler.tuning.report import TuneOptions

    if (model is None) == (job is None):
        raise ConfigError("give either MODEL.onnx or --job JOBS.toml")
    if job is not None:
        from tinsmith.compiler.cli.tune_jobs import run_jobs

        run_jobs(job, log, resume=resume, fresh=fresh, as_json=as_json)
        return
    assert model is not None
    early.check_model(model)
    early.check_target(target)
    early.check_samples({"calibration": calibration})
    config = CompileConfig(
        target=target,
        shapes=parse_shape_options(shape or ()),
        constants=parse_constant_options(constant or ()),
        threads=threads,
        quantization=quantization_of(quantize, calibration),
    )
    options = TuneOptions(
        minutes=minutes,
        trials=trials,
        tasks=tasks,
        log=log,
        seed=seed,
        resume=resume,
        fresh=fresh,
        rpc=rpc,
        key=key,
    )
    report = tune_shown(model, config, options, hidden=as_json)
    if as_json:
        output.print_json(report.to_dict())
    else:
        print_report(report)


def quantization_of(quantize: str | None, calibration: str | None) -> QuantizationConfig | None:
    """The configuration of two options. Raises ConfigError if they do not fit."""
    if quantize is None:
        if calibration is not None:
            raise ConfigError("--calibration is for quantising: add --quantize int8")
        return None
    return QuantizationConfig(format=quantize, calibration=calibration)


def tune_shown(
    model: Path, config: CompileConfig, options: TuneOptions, hidden: bool
) -> TuneReport:
    """Run a job with a live table; an interruption is told with how to go on."""
    try:
        with live_table(f"tune {model.name}", hidden) as show:
            from tinsmith.compiler.tuning.job import tune  # imports TVM

            return tune(model, config=config, options=options, progress=show)
    except KeyboardInterrupt:
        output.note("what was measured is kept: the same command goes on from here")
        raise


@contextmanager
def live_table(title: str, hidden: bool) -> Iterator[Callable[[JobView], None]]:
    """A table on standard error that follows a job; nothing if `hidden` or not a terminal."""
    if hidden:
        yield lambda view: None
        return
    from rich.console import Console
    from rich.live import Live

    screen = Console(stderr=True, highlight=False, markup=False)
    if not screen.is_terminal:
        yield lambda view: None
        return
    begin = f"{plain_line(title)}: starting"
    with Live(begin, console=screen, transient=True, auto_refresh=False) as live:
        live.refresh()

        def show(view: JobView) -> None:
            eta = f"{view.eta_seconds:.0f} s left at most"
            head = f"{plain_line(title)}: {view.phase}, {view.seconds:.0f} s, {eta}"
            rows = [[plain_line(cell) for cell in _cells(row)] for row in view.rows[:_ROWS]]
            live.update(fitted(head, _COLUMNS, rows, 2, screen.width), refresh=True)

        yield show


def _cells(row: TaskRow) -> tuple[str, ...]:
    kernel = row.kernel.split()[0]
    others = len(row.kernel.split()) - 1
    return (
        f"{kernel} +{others}" if others else kernel,
        row.template,
        str(row.calls),
        f"{row.share:.1%}",
        f"{row.microseconds:.1f}",
        f"{row.ratio:.3f}",
        str(row.trials),
        str(row.failures),
        row.state,
    )


def print_report(report: TuneReport) -> None:
    """The kernels, what was left alone, notes, and one line for the model."""
    if report.rows:
        output.print_table(
            "kernels (best: time relative to the template's default)",
            _COLUMNS,
            [_cells(row) for row in report.rows],
            left=2,
        )
    reasons: dict[str, int] = {}
    for _, reason in report.left_alone:
        told = "take too little time to matter" if reason.startswith("takes") else reason
        reasons[told] = reasons.get(told, 0) + 1
    for reason, count in reasons.items():
        output.say(f"left alone: {count} kernels: {reason}")
    for remark in report.notes:
        output.note(remark)
    if report.trials:
        output.say(f"{report.overhead:.0%} of the time was spent neither building nor measuring")
    output.say(f"{report.model}: {report.summary()}")
