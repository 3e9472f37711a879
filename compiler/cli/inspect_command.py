"""`tinsmith inspect`: what a module consists of, and how near each kernel is to the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinsmith.compiler.byte_size import byte_size
from tinsmith.compiler.cli import early, output
from tinsmith.compiler.cli.options import AsJson, ModulePath, Threads
from tinsmith.compiler.cli.quantization import print_quantization
from tinsmith.compiler.cli.tables import elided
from tinsmith.compiler.errors import ArtifactError
from tinsmith.compiler.quantization.report import QuantizationReport

if TYPE_CHECKING:
    from tinsmith.compiler.evaluate.kernels import KernelRow, KernelsReport


_NODE_WIDTH = 40


@output.reported
def inspect_module(
    module: ModulePath,
    runs: Annotated[
        int, typer.Option(min=1, help="Profiled runs; each kernel's median counts.")
    ] = 10,
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """Show a module's kernels: template, decisions, FLOPs, bytes, time, share of the roofline.

    The roofline of this machine is measured once and kept in the user's cache folder. Of a
    quantised module the report of its layers follows. Of a module for another machine all is
    told that needs no run.

    **Example:** `tinsmith inspect out/ --threads 2`
    """
    early.check_module(module)
    with output.progress_bar("inspect", hidden=as_json) as show:
        from tinsmith.compiler.evaluate.kernels import inspect

        report = inspect(module, runs, threads, show)
    if as_json:
        output.print_json(report.to_dict() | _levels(module))
        return
    for line in report.header():
        output.say(line)
    for line in told_levels(module):
        output.say(line)
    _print_kernels(report)
    for line in report.footer():
        output.say(line)
    quantization = report.manifest.measured.quantization
    if quantization is None:
        return
    try:
        print_quantization(QuantizationReport.from_dict(quantization))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{module}: the report of quantisation in its manifest is damaged ({error}); "
            "compile the model again"
        ) from error


def _print_kernels(report: KernelsReport) -> None:
    """A row for each kernel; without times if the module was not run."""
    timed = not report.not_run
    output.print_table(
        "kernels, slowest first" if timed else "kernels, most operations first",
        (
            *("kernel", "nodes", "template", "decisions", "from", "calls", "MFLOP", "KiB"),
            *(("us", "time", "roof") if timed else ()),
        ),
        [
            (
                row.name,
                _nodes(row.nodes),
                f"{row.template} {row.arithmetic}".rstrip(),
                " ".join(f"{key}={value}" for key, value in row.decisions.items()) or "-",
                row.source,
                row.calls,
                f"{row.flops / 1e6:.2f}",
                f"{row.bytes / 1024:.0f}",
                *(_times(row) if timed else ()),
            )
            for row in report.rows
        ],
        left=5,
    )


def _nodes(names: Sequence[str]) -> str:
    """The last of the nodes, and how many there are before it."""
    if not names:
        return "-"
    last = elided(names[-1], _NODE_WIDTH)
    return f"{last} +{len(names) - 1}" if len(names) > 1 else last


def _times(row: KernelRow) -> tuple[str, ...]:
    return (
        f"{row.seconds * 1e6:.1f}",
        f"{row.share_of_time:.1%}",
        f"{row.share_of_roofline:.0%}" if row.known_work else "-",
    )


def told_levels(module: Path) -> list[str]:
    """A line for each level of a module for several targets: what it takes, and what is taken."""
    lines = []
    for level in _levels(module).get("levels", ()):
        told = f"level {level['name']}: {byte_size(level['deployed_bytes'])}"
        shared = ", weights of the lowest" if level["weights_shared"] else ""
        state = "taken here" if level["taken"] else level["refusal"] or "runs here, too"
        lines.append(f"{told}{shared}; {state}")
    return lines


def _levels(module: Path) -> dict[str, list[dict[str, Any]]]:
    """What `--json` tells of the levels of a module, the lowest first."""
    from tinsmith.compiler.module.levels import has_levels, level_folder, levels_of
    from tinsmith.compiler.module.manifest import read_manifest

    if not has_levels(module):
        return {}
    taken = level_folder(module)
    return {
        "levels": [
            {
                "name": level.name,
                "deployed_bytes": read_manifest(level.folder).deployed_bytes,
                "weights_shared": level.folder != module
                and not (level.folder / "weights.bin").exists(),
                "taken": level.folder == taken,
                "refusal": level.refusal,
            }
            for level in levels_of(module)
        ]
    }
