"""Options of pruning that several commands have in common, and the tables of its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tinsmith.compiler.cli import output
from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.pruning.config import AUTO, GOALS, PruneConfig
from tinsmith.compiler.pruning.report import PruneReport

Sparsity = Annotated[
    str | None,
    typer.Option(
        metavar="0.5|2:4|below:0.01",
        help="Set small weights to zero: a share, N of every M stay, or by magnitude. For "
        "`tinsmith pack`; no faster.",
    ),
]
Criterion = Annotated[
    str,
    typer.Option(
        "--prune-criterion",
        help="Importance of channels: reconstruction, taylor, activation, apoz, l1, l2, "
        "geometric-median, batch-norm, random; auto: by the data, if there are any.",
    ),
]
Allocation = Annotated[
    str,
    typer.Option(
        "--prune-allocation",
        help="How a ratio is spread over groups: uniform, global or sensitivity.",
    ),
]
PruneAlignment = Annotated[
    int | None,
    typer.Option(
        "--prune-alignment",
        min=1,
        metavar="N",
        help="Widths are multiples of N channels; default: the lanes of the target's vectors.",
    ),
]
Residual = Annotated[
    str,
    typer.Option(
        "--prune-residual",
        metavar="0..1",
        help="How much residual streams shrink: 1 as others, 0 not at all, auto by their width.",
    ),
]
Steps = Annotated[
    int, typer.Option("--prune-steps", min=1, help="Steps, with recovery after each.")
]
Recover = Annotated[
    str,
    typer.Option(
        help="Pruned weights learn from data: none, batch-norm, least-squares, distill, auto."
    ),
]
DistillMinutes = Annotated[float, typer.Option(help="Longest time of --recover distill.")]
Augment = Annotated[
    str | None,
    typer.Option(
        metavar="flip,crop,mixup", help="Pictures changed at random for --recover distill."
    ),
]
KeepGroup = Annotated[
    list[str] | None,
    typer.Option(metavar="GROUP", help="A group, as the report names it, to leave whole."),
]


def prune_config(
    goals: Mapping[str, float | None], sparsity: str | None = None, **options: Any
) -> PruneConfig | None:
    """The configuration that the options mean; None without a goal and a sparsity.

    Raises ConfigError for options that mean nothing without one, and as `PruneConfig` does.
    """
    given: dict[str, Any] = {name: goal for name, goal in goals.items() if goal is not None}
    if len(given) > 1:
        named = ", ".join(_option(name) for name in given)
        raise ConfigError(f"{named}: give one goal of pruning")
    if not given and sparsity is None:
        return None
    return PruneConfig(**given, sparsity=sparsity, **options)


def refuse_without_goal(**options: object) -> None:
    """Raise ConfigError for an option that is not at its default while nothing is pruned."""
    for name, changed in options.items():
        if changed:
            raise ConfigError(f"--{name.replace('_', '-')} is for pruning: add --prune 0.3")


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


def residual_of(text: str) -> float | str:
    """`auto` or a number; ConfigError names the option."""
    if text == AUTO:
        return text
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(
            f"--prune-residual {text}: expected a number from 0 to 1, or auto"
        ) from error


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _option(goal: str) -> str:
    return "--prune" if goal == GOALS[0] else f"--prune-{goal}"
