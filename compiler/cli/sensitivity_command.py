"""`tinsmith sensitivity`: how much quality each group of channels carries, by itself."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinsmith.compiler.cli import early, output
from tinsmith.compiler.cli.options import AsJson, Constant, Shape
from tinsmith.compiler.cli.pruning import Criterion
from tinsmith.compiler.cli.samples import (
    HeldOut,
    Labels,
    Layout,
    Mean,
    PixelRange,
    Resize,
    Samples,
    Std,
    sample_options,
)
from tinsmith.compiler.config import (
    CompileConfig,
    parse_constant_options,
    parse_shape_options,
    refuse_ranges,
)
from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.pruning.config import AUTO, PruneConfig
from tinsmith.compiler.quantization.config import parse_numbers

if TYPE_CHECKING:
    from tinsmith.compiler.pruning.sensitivity import Sensitivity

_PLOTS = (".png", ".svg")


@output.reported
def measure_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model to measure.")],
    calibration: Annotated[
        str,
        typer.Option(metavar="PATH", help="Samples: a folder of pictures, .npz or .npy."),
    ],
    ratios: Annotated[
        str, typer.Option(metavar="R,R,...", help="Shares of a group that go.")
    ] = "0.25,0.5,0.75",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the curves; .png or .svg.")
    ] = None,
    shape: Shape = None,
    constant: Constant = None,
    threads: Annotated[int, typer.Option(min=0, help="0: one for each core.")] = 0,
    samples: Samples = 100,
    mean: Mean = "0",
    std: Std = "1",
    pixel_range: PixelRange = 1.0,
    layout: Layout = None,
    resize: Resize = None,
    labels: Labels = None,
    evaluation: HeldOut = None,
    prune_criterion: Criterion = AUTO,
    as_json: AsJson = False,
) -> None:
    """Remove a share of each group of channels alone, and judge what the model still answers.

    **Example:** `tinsmith sensitivity model.onnx --calibration photos/ --plot curves.png`
    """
    chosen = _ratios(ratios)
    if plot is not None:
        _check_plot(plot)
    data = sample_options(
        calibration=calibration,
        samples=samples,
        mean=mean,
        std=std,
        pixel_range=pixel_range,
        layout=layout,
        resize=resize,
        labels=labels,
        evaluation=evaluation,
    )
    config = PruneConfig(
        ratio=chosen[0],
        criterion=prune_criterion,
        recovery="none",
        **data,
    )
    shapes = parse_shape_options(shape or ())
    refuse_ranges(shapes)
    constants = parse_constant_options(constant or ())
    early.check_model(model)
    early.check_samples(data)
    early.check_new_file("--plot", plot)
    with output.progress_bar(f"sensitivity {model.name}", hidden=as_json) as show:
        from tinsmith.compiler.frontends.registry import import_model  # imports TVM
        from tinsmith.compiler.host import Host
        from tinsmith.compiler.pruning.pruner import Pruner
        from tinsmith.compiler.workshop import workshop

        show("import", 0.0)
        imported = import_model(model, shapes, constants)
        host = Host.at_hand()
        found = Pruner(
            config,
            host.spec,
            imported.signature,
            imported.domains,
            workshop(CompileConfig(threads=threads), host.spec, host=host),
            progress=show,
        ).sensitivity(imported.module, chosen)
    if plot is not None:
        _draw(found, plot)
    if as_json:
        output.print_json(found.to_dict())
        return
    rows = [
        (curve.name, *(f"{ratio:.0%}: {quality:.1%}" for ratio, quality in curve.points))
        for curve in found.curves
    ]
    columns = max((len(row) for row in rows), default=1) - 1
    output.print_table(
        f"{found.measure} by the share of the group that goes (whole: {found.whole:.1%})",
        ("group", *([""] * columns)),
        [(*row, *([""] * (columns + 1 - len(row)))) for row in rows],
    )


def _ratios(text: str) -> tuple[float, ...]:
    ratios = parse_numbers("--ratios", text)
    if not all(0 < ratio < 1 for ratio in ratios):
        raise ConfigError(f"--ratios {text}: expected numbers between 0 and 1, both excluded")
    return ratios


def _check_plot(path: Path) -> None:
    if path.suffix.lower() not in _PLOTS:
        raise ConfigError(f"--plot {path}: the file ends in {' or '.join(_PLOTS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'tinsmith[plot]'")


def _draw(found: Sensitivity, path: Path) -> None:
    """A line for each group."""
    from matplotlib.figure import Figure

    from tinsmith.compiler.module.manifest import write_atomically

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for curve in found.curves:
        shares = [0.0, *(ratio for ratio, _ in curve.points)]
        axes.plot(
            shares, [found.whole, *(q for _, q in curve.points)], marker=".", label=curve.name
        )
    axes.set_xlabel("share of the group's channels that goes")
    axes.set_ylabel(found.measure)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="x-small")
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:].lower())
    try:
        write_atomically(path, drawn.getvalue())
    except OSError as error:
        raise ConfigError(f"--plot {path}: {error.strerror}") from error
