"""Options that say which samples a command reads, and how pixels become input."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tinsmith.compiler.quantization.config import parse_numbers, parse_resize

Calibration = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Samples: a folder of pictures, .npz, .npy, or `random`."),
]
Samples = Annotated[
    int,
    typer.Option(min=1, help="Samples of --calibration for statistics; distillation reads all."),
]
Mean = Annotated[str, typer.Option(metavar="N,N,N", help="Subtracted from pixels.")]
Std = Annotated[str, typer.Option(metavar="N,N,N", help="Pixels are divided by this.")]
PixelRange = Annotated[float, typer.Option(help="The value of white: 1 or 255.")]
Layout = Annotated[
    str | None, typer.Option(help="Of the input: NCHW or NHWC; default: from its shape.")
]
Resize = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Resize pictures: SIZE or HEIGHT,WIDTH.")
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Class indices, .npy, .csv or .txt; or `from-names` of pictures."
    ),
]
HeldOut = Annotated[
    str | None, typer.Option(metavar="PATH", help="Held-out samples to measure accuracy on.")
]


def sample_options(*, mean: str, std: str, resize: str | None, **others: Any) -> dict[str, Any]:
    """The arguments of `SampleOptions` that the options mean. Raises ConfigError."""
    return {
        "mean": parse_numbers("--mean", mean),
        "std": parse_numbers("--std", std),
        "resize": None if resize is None else parse_resize(resize),
        **others,
    }
