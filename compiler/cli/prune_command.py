"""`tinsmith prune`: a model file to a smaller model file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinsmith.compiler.byte_size import byte_size
from tinsmith.compiler.cli import early, output
from tinsmith.compiler.cli.options import AsJson, Constant, Shape
from tinsmith.compiler.cli.pruning import (
    Allocation,
    Augment,
    Criterion,
    DistillMinutes,
    KeepGroup,
    PruneAlignment,
    Recover,
    Residual,
    Steps,
    print_pruning,
)
from tinsmith.compiler.cli.samples import (
    Calibration,
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
from tinsmith.compiler.errors import ConfigError, ModelError
from tinsmith.compiler.frontends import CHECKPOINT_SUFFIX
from tinsmith.compiler.pruning.config import AUTO
from tinsmith.compiler.words import pruning_of


@output.reported
def prune_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model to prune.")],
    out: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The pruned model: .onnx, or .tinsmith for a checkpoint of any graph.",
        ),
    ],
    ratio: Annotated[
        float | None,
        typer.Option(
            "--ratio", "--prune", metavar="RATIO", help="Remove this share of the channels: 0.3."
        ),
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(
            "--flops", "--prune-flops", metavar="SHARE", help="Prune to a share of the operations."
        ),
    ] = None,
    params: Annotated[
        float | None,
        typer.Option(
            "--params",
            "--prune-params",
            metavar="SHARE",
            help="Prune to a share of the parameters.",
        ),
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(
            "--latency",
            "--prune-latency",
            metavar="SHARE",
            help="Prune to a share of the latency, measured here.",
        ),
    ] = None,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="The machine whose vectors widths are aligned to.")
    ] = "native",
    prune_criterion: Criterion = AUTO,
    prune_allocation: Allocation = "uniform",
    prune_residual: Residual = AUTO,
    prune_alignment: PruneAlignment = None,
    prune_steps: Steps = 1,
    keep_group: KeepGroup = None,
    recover: Recover = AUTO,
    distill_minutes: DistillMinutes = 10.0,
    augment: Augment = None,
    calibration: Calibration = None,
    samples: Samples = 100,
    mean: Mean = "0",
    std: Std = "1",
    pixel_range: PixelRange = 1.0,
    layout: Layout = None,
    resize: Resize = None,
    labels: Labels = None,
    evaluation: HeldOut = None,
    shape: Shape = None,
    constant: Constant = None,
    threads: Annotated[int, typer.Option(min=0, help="0: one for each core.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Prune a model and write it as ONNX, for any tool, or as a checkpoint, for Tinsmith's.

    **Example:** `tinsmith prune model.onnx --ratio 0.3 --calibration photos/ -o pruned.onnx`

    **Checkpoint:** `tinsmith prune model.onnx --ratio 0.3 -o pruned.tinsmith`, then
    `tinsmith compile pruned.tinsmith -o out/`
    """
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
    goals = {"prune": ratio, "prune_flops": flops, "prune_params": params}
    if all(goal is None for goal in (*goals.values(), latency)):
        raise ConfigError("give a goal: --ratio 0.3, --flops 0.5, --params 0.5 or --latency 0.6")
    config = pruning_of(
        {
            **data,
            **goals,
            "prune_latency": latency,
            "prune_criterion": prune_criterion,
            "prune_allocation": prune_allocation,
            "prune_residual": prune_residual,
            "prune_alignment": prune_alignment,
            "prune_steps": prune_steps,
            "keep_group": keep_group,
            "recover": recover,
            "distill_minutes": distill_minutes,
            "augment": augment,
        }
    )
    assert config is not None  # there is a goal
    if out.suffix not in (".onnx", CHECKPOINT_SUFFIX):
        raise ConfigError(f"--output {out}: the file ends in .onnx or {CHECKPOINT_SUFFIX}")
    shapes = parse_shape_options(shape or ())
    refuse_ranges(shapes)
    constants = parse_constant_options(constant or ())
    early.check_model(model)
    early.check_target(target)
    early.check_samples(data)
    early.check_new_file("--output", out)
    with output.progress_bar(f"prune {model.name}", hidden=as_json) as show:
        from tinsmith.compiler.export.onnx import to_onnx  # imports TVM
        from tinsmith.compiler.frontends.checkpoint import write_checkpoint
        from tinsmith.compiler.frontends.registry import import_model
        from tinsmith.compiler.module.manifest import write_atomically
        from tinsmith.compiler.preparation import target_named
        from tinsmith.compiler.pruning.pruner import Pruner, readable
        from tinsmith.compiler.workshop import workshop

        show("import", 0.0)
        imported = import_model(model, shapes, constants)
        spec = target_named(target)
        as_onnx = out.suffix == ".onnx"
        if as_onnx:
            # Told before hours of training rather than after.
            try:
                module = readable(imported.module)
                to_onnx(module, imported.input_names, imported.output_names)
            except ModelError as error:
                raise ModelError(
                    f"{error}; -o {out.with_suffix(CHECKPOINT_SUFFIX)} keeps it"
                ) from error
        pruner = Pruner(
            config,
            spec,
            imported.signature,
            imported.domains,
            workshop(CompileConfig(threads=threads), spec),
            progress=show,
        )
        pruned = pruner(imported.module)
        report = pruner.report
        assert report is not None  # the call above made it
        try:
            if as_onnx:
                written = to_onnx(pruned, imported.input_names, imported.output_names)
                write_atomically(out, written.SerializeToString())
            else:
                write_checkpoint(out, pruned, imported, report.to_dict())
        except OSError as error:
            raise ConfigError(f"--output {out}: {error.strerror}") from error
    if as_json:
        output.print_json({"path": str(out), **report.to_dict()})
        return
    print_pruning(report)
    output.say(f"{out}: {byte_size(out.stat().st_size)}")
