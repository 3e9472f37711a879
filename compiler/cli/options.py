"""Options that several commands have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tinsmith.compiler.errors import ConfigError

# Groups of options in `--help`; what most need comes before them, without a group.
QUANTISING = "Quantising"
PRUNING = "Pruning"
SAMPLES = "Samples"
TUNING = "Tuning records"
DIAGNOSIS = "Diagnosis"
DETAILS = "Details"

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, errors included.")]
ModulePath = Annotated[
    Path,
    typer.Argument(
        metavar="MODULE", help="A folder of `tinsmith compile`, or an archive of `tinsmith pack`."
    ),
]
ModelOption = Annotated[
    Path | None,
    typer.Option("--model", metavar="MODEL.onnx", help="The model the module was compiled from."),
]
Shape = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=N,N,...",
        help="Shape of an input with dynamic dimensions; 1..8 leaves the batch open.",
    ),
]
Batch = Annotated[
    str | None,
    typer.Option(metavar="N", help="Size of open batch dimensions; 1..8 leaves it open."),
]
Dims = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=N", help="Size of an open dimension; default: the smallest."),
]
Constant = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="Replace an input by a constant.")
]
Threads = Annotated[int, typer.Option("--threads", min=1, max=256, help="Threads to compute with.")]


# No more digits than a 64-bit size may have.
_NUMBER = re.compile("[0-9]{1,18}")


def parse_dims(options: Sequence[str]) -> dict[str, int]:
    """Sizes by the name of the dimension, of options such as `batch=3`. Raises ConfigError."""
    sizes: dict[str, int] = {}
    for option in options:
        name, separator, size = option.rpartition("=")
        if not separator or not name or not _NUMBER.fullmatch(size):
            raise ConfigError(f"--dims {option}: expected NAME=N, as in batch=3")
        sizes[name] = int(size)
    return sizes
