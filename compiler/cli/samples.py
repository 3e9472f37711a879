"""Options that say which samples a command reads, and how pixels become input."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tinsmith.compiler.cli.options import SAMPLES
from tinsmith.compiler.quantization.config import parse_numbers, parse_resize

Calibration = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Samples: a folder of pictures, .npz, .npy, or `random`."),
]
Samples = Annotated[
    int,
    typer.Option(
        min=1,
        help="Samples of --calibration for statistics; distillation reads all.",
        rich_help_panel=SAMPLES,
    ),
]
Mean = Annotated[
    str, typer.Option(metavar="N,N,N", help="Subtracted from pixels.", rich_help_panel=SAMPLES)
]
Std = Annotated[
    str, typer.Option(metavar="N,N,N", help="Pixels are divided by this.", rich_help_panel=SAMPLES)
]
PixelRange = Annotated[
    float, typer.Option(help="The value of white: 1 or 255.", rich_help_panel=SAMPLES)
]
Layout = Annotated[
    str | None,
    typer.Option(
        help="Of the input: NCHW or NHWC; default: from its shape.", rich_help_panel=SAMPLES
    ),
]
Resize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Resize pictures: SIZE or HEIGHT,WIDTH.", rich_help_panel=SAMPLES
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Class indices, .npy, .csv or .txt; or `from-names` of pictures.",
        rich_help_panel=SAMPLES,
    ),
]
HeldOut = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Held-out samples to measure accuracy on.",
        rich_help_panel=SAMPLES,
    ),
]


def sample_options(*, mean: str, std: str, resize: str | None, **others: Any) -> dict[str, Any]:
    """The arguments of `SampleOptions` that the options mean. Raises ConfigError."""
    return {
        "mean": parse_numbers("--mean", mean),
        "std": parse_numbers("--std", std),
        "resize": None if resize is None else parse_resize(resize),
        **others,
    }
