"""`tinsmith verify`: does a module compute what it should?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinsmith.compiler.cli import early, output
from tinsmith.compiler.cli.options import AsJson, ModelOption, ModulePath, Threads
from tinsmith.compiler.errors import ConfigError, VerificationError

if TYPE_CHECKING:
    from tinsmith.compiler.evaluate.verify import VerifyReport


@output.reported
def verify_module(
    module: ModulePath,
    model: ModelOption = None,
    bisect: Annotated[
        bool,
        typer.Option(
            "--bisect", help="Name the first pass and tensor that diverge (needs --model)."
        ),
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="Fresh random inputs to compare on.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the fresh inputs.")] = 1,
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """Compare a module with its golden vectors and, given the model, on fresh inputs too.

    Exits with 1 if anything disagrees. Of a module for several targets all are run that this
    machine can run.

    **Example:** `tinsmith verify out/ --model resnet50.onnx --bisect`
    """
    if bisect and model is None:
        raise ConfigError("--bisect replays the compilation: give the model with --model")
    early.check_module(module)
    early.check_model(model)
    with output.progress_bar("verify", hidden=as_json) as show:
        from tinsmith.compiler.evaluate.verify import verify

        report = verify(module, model, samples, seed, threads, show)
        others = _other_levels(
            module, lambda name: verify(module, model, samples, seed, threads, show, name)
        )
        found = None
        if bisect and model is not None:
            from tinsmith.compiler.evaluate.bisect import bisect_module

            found = bisect_module(module, model, seed, show)
    if as_json:
        known = {name: r if isinstance(r, str) else r.to_dict() for name, r in others.items()}
        further = ({"bisect": found.to_dict()} if found else {}) | (
            {"levels": known} if known else {}
        )
        output.print_json(report.to_dict() | further)
    else:
        print_report(report)
        for name, other in others.items():
            output.say(f"level {name}: " + (other if isinstance(other, str) else "verified, too"))
            if not isinstance(other, str):
                print_report(other)
        if found is not None:
            output.print_table(
                "pass by pass",
                ("after", "agrees", "deviation / range", "tensor"),
                [
                    (step.name, _yes(step.agrees), f"{step.relative:.2e}", step.tensor)
                    for step in found.steps
                ],
            )
            output.say(found.conclusion())
    wrong = [n for n, r in others.items() if not isinstance(r, str) and not r.agrees]
    if wrong:
        raise VerificationError(f"{module}: level {wrong[0]} does not agree with its reference")
    if not report.agrees or (found is not None and found.first_divergence is not None):
        raise VerificationError(f"{module}: the module does not agree with its reference")


def _other_levels(
    module: Path, check: Callable[[str], VerifyReport]
) -> dict[str, VerifyReport | str]:
    """The reports of the levels that `load` does not take; of those that cannot run here, why."""
    from tinsmith.compiler.module.levels import has_levels, level_folder, levels_of

    if not has_levels(module):
        return {}
    taken = level_folder(module)
    return {
        level.name: f"not run here: {level.refusal}" if level.refusal else check(level.name)
        for level in levels_of(module)
        if level.folder != taken
    }


def print_report(report: VerifyReport) -> None:
    """One row for each output of each input compared."""
    output.print_table(
        "",
        ("inputs", "reference", "output", "largest deviation", "of the range", "allowed", "agrees"),
        [
            (
                check.inputs,
                check.reference,
                difference.name,
                f"{difference.absolute:.2e}",
                difference.detail or f"{difference.relative:.2e}",
                f"{difference.tolerance:.0e}",
                _yes(difference.agrees),
            )
            for check in report.checks
            for difference in check.differences
        ],
        left=3,
    )
    if report.float_checks:
        output.print_table(
            f"{report.reduced}: beside the float model",
            ("inputs", "reference", "output", "signal to noise", "promised", "kept"),
            [
                (
                    check.inputs,
                    check.reference,
                    distance.name,
                    distance.told,
                    distance.promise_told or "-",
                    "-" if distance.agrees is None else _yes(distance.agrees),
                )
                for check in report.float_checks
                for distance in check.distances
            ],
            left=3,
        )
        found = ", ".join(f"{name} {value:.4g}" for name, value in report.report.items())
        output.say(f"when it was compiled: {found or 'no report'}")
    for remark in report.notes:
        output.note(remark)


def _yes(agrees: bool) -> str:
    return "yes" if agrees else "NO"
