"""Options of pruning that several commands have in common, and the tables of its report."""

from __future__ import annotations

from typing import Annotated

import typer

from tinsmith.compiler.cli import output
from tinsmith.compiler.cli.options import PRUNING
from tinsmith.compiler.pruning.report import PruneReport

Sparsity = Annotated[
    str | None,
    typer.Option(
        metavar="0.5|2:4|below:0.01",
        help="Set small weights to zero: a share, N of every M stay, or by magnitude. For "
        "`tinsmith pack`; no faster.",
        rich_help_panel=PRUNING,
    ),
]
Criterion = Annotated[
    str,
    typer.Option(
        "--prune-criterion",
        help="Importance of channels: reconstruction, taylor, activation, apoz, l1, l2, "
        "geometric-median, batch-norm, random; auto: by the data, if there are any.",
        rich_help_panel=PRUNING,
    ),
]
Allocation = Annotated[
    str,
    typer.Option(
        "--prune-allocation",
        help="How a ratio is spread over groups: uniform, global or sensitivity.",
        rich_help_panel=PRUNING,
    ),
]
PruneAlignment = Annotated[
    int | None,
    typer.Option(
        "--prune-alignment",
        min=1,
        metavar="N",
        help="Widths are multiples of N channels; default: the lanes of the target's vectors.",
        rich_help_panel=PRUNING,
    ),
]
Residual = Annotated[
    str,
    typer.Option(
        "--prune-residual",
        metavar="0..1",
        help="How much residual streams shrink: 1 as others, 0 not at all, auto by their width.",
        rich_help_panel=PRUNING,
    ),
]
Steps = Annotated[
    int,
    typer.Option(
        "--prune-steps", min=1, help="Steps, with recovery after each.", rich_help_panel=PRUNING
    ),
]
Recover = Annotated[
    str,
    typer.Option(
        help="Pruned weights learn from data: none, batch-norm, least-squares, distill, auto.",
        rich_help_panel=PRUNING,
    ),
]
DistillMinutes = Annotated[
    float, typer.Option(help="Longest time of --recover distill.", rich_help_panel=PRUNING)
]
Augment = Annotated[
    str | None,
    typer.Option(
        metavar="flip,crop,mixup",
        help="Pictures changed at random for --recover distill.",
        rich_help_panel=PRUNING,
    ),
]
KeepGroup = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GROUP",
        help="A group, as the report names it, to leave whole.",
        rich_help_panel=PRUNING,
    ),
]


def print_pruning(report: PruneReport) -> None:
    """A row for each group, each step and each sparse layer, notes, and one line for the model."""
    if report.steps:
        _print_channels(report)
    if report.sparse_layers:
        output.print_table(
            "weights",
            ("layer", "weights", "zeros", "share"),
            [
                (layer.name, layer.weights, layer.zeros, _share(layer.zeros / layer.weights))
                for layer in report.sparse_layers
            ],
        )
    for remark in report.notes:
        output.note(remark)
    output.say(report.summary())


def _print_channels(report: PruneReport) -> None:
    output.print_table(
        "groups",
        ("group", "channels", "left", "importance kept", "stays whole because"),
        [
            (
                group.name,
                group.before,
                group.after,
                _share(group.importance_kept),
                group.reason,
            )
            for group in report.groups
        ],
    )
    output.print_table(
        "steps",
        ("step", "channels", "operations", "parameters", "shrunk", "recovered", "top-1"),
        [
            (
                number,
                _share(step.channels),
                _share(step.flops),
                _share(step.params),
                _share(step.shrunk_agreement),
                _share(step.agreement),
                _share(step.top1),
            )
            for number, step in enumerate(report.steps, 1)
        ],
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
