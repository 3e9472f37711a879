"""`tinsmith compile`: a model file to a module."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinsmith.compiler.byte_size import byte_size
from tinsmith.compiler.cli import early, output
from tinsmith.compiler.cli.options import (
    DIAGNOSIS,
    PRUNING,
    QUANTISING,
    TUNING,
    AsJson,
    Batch,
    Constant,
    Shape,
)
from tinsmith.compiler.cli.pruning import (
    Allocation,
    Augment,
    Criterion,
    DistillMinutes,
    KeepGroup,
    PruneAlignment,
    Recover,
    Residual,
    Sparsity,
    Steps,
    print_pruning,
)
from tinsmith.compiler.cli.quantization import print_quantization, write_json
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
from tinsmith.compiler.config import parse_batch_option, parse_constant_options, parse_shape_options
from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.pruning.config import AUTO
from tinsmith.compiler.words import config_of


@output.reported
def compile_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model to compile.")],
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write the module to.")
    ],
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The machine to compile for, see `tinsmith targets`; or several: "
            "x86-64-v3,native.",
        ),
    ] = "native",
    quantize: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="In fewer bits: int8, bf16, or weights: int4-weights."),
    ] = None,
    calibration: Calibration = None,
    prune: Annotated[
        float | None,
        typer.Option(metavar="RATIO", help="Remove this share of the channels: 0.3."),
    ] = None,
    shape: Shape = None,
    batch: Batch = None,
    constant: Constant = None,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads to schedule for; 0: one for each core.")
    ] = 0,
    report_file: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FILE.json", help="Write the report of each layer or group."
        ),
    ] = None,
    samples: Samples = 100,
    mean: Mean = "0",
    std: Std = "1",
    pixel_range: PixelRange = 1.0,
    layout: Layout = None,
    resize: Resize = None,
    labels: Labels = None,
    evaluation: HeldOut = None,
    rounding: Annotated[
        str,
        typer.Option(
            help="Of int8 weights: nearest, or least-squares (by the data).",
            rich_help_panel=QUANTISING,
        ),
    ] = "nearest",
    observer: Annotated[
        str,
        typer.Option(
            help="minmax, moving_average, percentile, entropy or mse.", rich_help_panel=QUANTISING
        ),
    ] = "percentile",
    equalize: Annotated[
        str,
        typer.Option(
            help="Cross-layer equalisation: on, off, or auto: as the data prefer.",
            rich_help_panel=QUANTISING,
        ),
    ] = AUTO,
    smooth: Annotated[
        str, typer.Option(help="SmoothQuant: on, off, or auto.", rich_help_panel=QUANTISING)
    ] = AUTO,
    correct_bias: Annotated[
        bool,
        typer.Option(help="Make up for rounded weights in the biases.", rich_help_panel=QUANTISING),
    ] = True,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Top-1 points that may be lost; needs labels.",
            rich_help_panel=QUANTISING,
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            help="Samples that must keep their class: 99.5.",
            rich_help_panel=QUANTISING,
        ),
    ] = None,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER",
            help="A layer, as the report names it, to leave in float.",
            rich_help_panel=QUANTISING,
        ),
    ] = None,
    fallback: Annotated[
        bool,
        typer.Option(
            help="Leave layers in float that are slower in integers.", rich_help_panel=QUANTISING
        ),
    ] = True,
    group_size: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Compressed weights that share a scale: 16 to 256.",
            rich_help_panel=QUANTISING,
        ),
    ] = 64,
    prune_flops: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Prune to a share of the operations.",
            rich_help_panel=PRUNING,
        ),
    ] = None,
    prune_params: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Prune to a share of the parameters.",
            rich_help_panel=PRUNING,
        ),
    ] = None,
    prune_latency: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Prune to a share of the latency, measured here.",
            rich_help_panel=PRUNING,
        ),
    ] = None,
    sparsity: Sparsity = None,
    prune_criterion: Criterion = AUTO,
    prune_allocation: Allocation = "uniform",
    prune_residual: Residual = AUTO,
    prune_alignment: PruneAlignment = None,
    prune_steps: Steps = 1,
    keep_group: KeepGroup = None,
    recover: Recover = AUTO,
    distill_minutes: DistillMinutes = 10.0,
    augment: Augment = None,
    log: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Tuning records to ask first.", rich_help_panel=TUNING),
    ] = None,
    tuned: Annotated[
        bool,
        typer.Option(
            "--tuned/--untuned",
            help="Use tuning records, or defaults alone.",
            rich_help_panel=TUNING,
        ),
    ] = True,
    winograd: Annotated[
        bool,
        typer.Option(
            help="Winograd's algorithm for 3x3 convolutions, where it is faster.",
            rich_help_panel=TUNING,
        ),
    ] = True,
    dump: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write the graph after each pass there.", rich_help_panel=DIAGNOSIS
        ),
    ] = None,
    timing: Annotated[
        bool,
        typer.Option("--timing", help="Print what each pass took.", rich_help_panel=DIAGNOSIS),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compile a model into a module: a folder with a shared library, its manifest and a runner.

    **Example:** `tinsmith compile resnet50.onnx --target native --shape input=1,3,224,224 -o out/`

    **Any batch from 1 to 8:** `tinsmith compile resnet50.onnx --shape input=1..8,3,224,224 -o out/`

    **Quantised:** `tinsmith compile resnet50.onnx --quantize int8 --calibration photos/ --mean
    0.485,0.456,0.406 --std 0.229,0.224,0.225 -o out8/`

    **Small:** `tinsmith compile model.onnx --quantize int4-weights --group-size 64 -o out4/`

    **Pruned:** `tinsmith compile model.onnx --prune 0.3 --calibration photos/ --recover distill
    --distill-minutes 10 -o small/`; with `--quantize int8` on top, too

    **Sparse:** `tinsmith compile model.onnx --sparsity 2:4 -o out/`, then `tinsmith pack out/`
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
    config = config_of(
        {
            **data,
            "quantize": quantize,
            "rounding": rounding,
            "observer": observer,
            "equalize": equalize,
            "smooth": smooth,
            "correct_bias": correct_bias,
            "max_drop": max_drop,
            "min_agreement": min_agreement,
            "keep_float": keep_float,
            "fallback": fallback,
            "group_size": group_size,
            "prune": prune,
            "prune_flops": prune_flops,
            "prune_params": prune_params,
            "prune_latency": prune_latency,
            "sparsity": sparsity,
            "prune_criterion": prune_criterion,
            "prune_allocation": prune_allocation,
            "prune_residual": prune_residual,
            "prune_alignment": prune_alignment,
            "prune_steps": prune_steps,
            "keep_group": keep_group,
            "recover": recover,
            "distill_minutes": distill_minutes,
            "augment": augment,
            "target": target,
            "shapes": parse_shape_options(shape or ()),
            "batch": None if batch is None else parse_batch_option(batch),
            "constants": parse_constant_options(constant or ()),
            "threads": threads,
            "dump": dump,
            "timing": timing,
            "log": log,
            "tuned": tuned,
            "winograd": winograd,
        }
    )
    if report_file is not None and config.quantization is None and config.pruning is None:
        raise ConfigError("--report is for quantising: add --quantize int8")
    early.check_model(model)
    early.check_targets(target)
    early.check_samples(data)
    early.check_new_folder(out)
    early.check_new_file("--report", report_file)
    early.check_log(log if tuned else None)
    with output.progress_bar(f"compile {model.name}", hidden=as_json) as show:
        from tinsmith.compiler.api import compile_to  # imports TVM

        report = compile_to(model, out, config=config, progress=show)
    if report_file is not None:
        written = {"quantization": report.quantization, "pruning": report.pruning}
        found = {name: part.to_dict() for name, part in written.items() if part is not None}
        write_json(report_file, found if len(found) > 1 else next(iter(found.values())))
    if as_json:
        output.print_json(report.to_dict())
        return
    for remark in report.notes:
        output.note(remark)
    output.say(report.coverage)
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items())
    output.say(f"{report.path}: {report.summary()}")
    output.say(f"phases: {phases}; peak memory {byte_size(report.peak_memory_bytes)}")
    if report.pruning is not None:
        print_pruning(report.pruning)
    if report.quantization is not None:
        print_quantization(report.quantization)
    if timing:
        output.print_table(
            "passes",
            ("pass", "ms"),
            [(name, output.milliseconds(seconds)) for name, seconds in report.pass_seconds],
        )
