"""`tinsmith prune`: a model file to a smaller model file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from compiler.cli import output
from compiler.cli.options import AsJson
from compiler.cli.pruning import (
    Allocation,
    Augment,
    Criterion,
    DistillMinutes,
    KeepGroup,
    Recover,
    Steps,
    print_pruning,
    prune_config,
)
from compiler.config import parse_constant_option, parse_shape_option
from compiler.errors import ConfigError
from compiler.pruning.config import AUTO
from compiler.quantization.config import parse_numbers, parse_resize


@output.reported
def prune_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model to prune.")],
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.onnx", help="The pruned model.")
    ],
    ratio: Annotated[
        float | None, typer.Option(help="Remove this share of the channels: 0.3.")
    ] = None,
    flops: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Prune to a share of the operations.")
    ] = None,
    params: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Prune to a share of the parameters.")
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Prune to a share of the latency, measured here."),
    ] = None,
    target: Annotated[
        str, typer.Option(help="The machine whose vectors widths are aligned to.")
    ] = "native",
    prune_criterion: Criterion = AUTO,
    prune_allocation: Allocation = "uniform",
    prune_steps: Steps = 1,
    keep_group: KeepGroup = None,
    recover: Recover = AUTO,
    distill_minutes: DistillMinutes = 10.0,
    augment: Augment = None,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Samples: a folder of pictures, .npz or .npy."),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Samples for statistics; distillation reads all.")
    ] = 100,
    mean: Annotated[str, typer.Option(metavar="N,N,N", help="Subtracted from pixels.")] = "0",
    std: Annotated[str, typer.Option(metavar="N,N,N", help="Pixels are divided by this.")] = "1",
    pixel_range: Annotated[float, typer.Option(help="The value of white: 1 or 255.")] = 1.0,
    layout: Annotated[
        str | None, typer.Option(help="Of the input: NCHW or NHWC; default: from its shape.")
    ] = None,
    resize: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Resize pictures: SIZE or HEIGHT,WIDTH.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="FILE", help="Class indices of the samples judged.")
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option(metavar="PATH", help="Held-out samples to judge by.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N,N,...", help="Shape of an input with dynamic dimensions."),
    ] = None,
    constant: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Replace an input by a constant."),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="0: one for each core.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Prune a model and write it as ONNX, for `tinsmith compile` or any other tool.

    **Example:** `tinsmith prune model.onnx --ratio 0.3 --calibration photos/ -o pruned.onnx`
    """
    config = prune_config(
        {"ratio": ratio, "flops": flops, "params": params, "latency": latency},
        criterion=prune_criterion,
        allocation=prune_allocation,
        steps=prune_steps,
        keep=tuple(keep_group or ()),
        recovery=recover,
        distill_minutes=distill_minutes,
        augment=tuple(augment.split(",")) if augment else (),
        calibration=calibration,
        samples=samples,
        mean=parse_numbers("--mean", mean),
        std=parse_numbers("--std", std),
        pixel_range=pixel_range,
        layout=layout,
        resize=None if resize is None else parse_resize(resize),
        labels=labels,
        evaluation=evaluation,
    )
    if config is None:
        raise ConfigError("give a goal: --ratio 0.3, --flops 0.5, --params 0.5 or --latency 0.6")
    if out.suffix != ".onnx":
        raise ConfigError(f"--output {out}: the file ends in .onnx")
    from compiler.evaluate.inputs import index_bounds  # imports TVM
    from compiler.export.onnx import to_onnx
    from compiler.frontends.onnx import import_onnx
    from compiler.preparation import target_named
    from compiler.pruning.pruner import Pruner, readable

    imported = import_onnx(
        model,
        dict(map(parse_shape_option, shape or [])),
        dict(map(parse_constant_option, constant or [])),
    )
    # Told before hours of training rather than after.
    to_onnx(readable(imported.module), imported.input_names, imported.output_names)
    inputs = zip(imported.input_shapes, imported.input_dtypes, strict=True)
    with output.progress_bar(f"prune {model.name}", hidden=as_json) as show:
        pruner = Pruner(
            config,
            target_named(target),
            dict(zip(imported.input_names, inputs, strict=True)),
            index_bounds(imported.reference),
            threads,
            progress=show,
        )
        pruned = pruner(imported.module)
    written = to_onnx(pruned, imported.input_names, imported.output_names)
    partial = out.with_name(out.name + ".partial")
    try:
        partial.write_bytes(written.SerializeToString())
        os.replace(partial, out)
    except OSError as error:
        raise ConfigError(f"--output {out}: {error.strerror}") from error
    report = pruner.report
    assert report is not None  # the call above made it
    if as_json:
        output.print_json({"path": str(out), **report.to_dict()})
        return
    print_pruning(report)
    output.say(f"{out}: {output.size(out.stat().st_size)}")
