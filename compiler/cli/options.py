"""Options that several commands have in common, and the reading of their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinsmith.compiler.errors import ConfigError, InputError
from tinsmith.compiler.module.regular_file import open_regular

if TYPE_CHECKING:
    import numpy as np

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


def parse_dims(options: Sequence[str]) -> dict[str, int]:
    """Sizes by the name of the dimension, of options such as `batch=3`. Raises ConfigError."""
    sizes: dict[str, int] = {}
    for option in options:
        name, separator, size = option.rpartition("=")
        if not separator or not size.isascii() or not size.isdigit():
            raise ConfigError(f"--dims {option}: expected NAME=N, as in batch=3")
        sizes[name] = int(size)
    return sizes


def read_arrays(options: Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays that `--input name=file.npy` options name.

    `--input file.npy` will do for a model of one input (`names` are all of them), and
    `--input file.npz` holds several by name. Raises InputError.
    """
    arrays: dict[str, np.ndarray] = {}

    def add(name: str, array: np.ndarray) -> None:
        if name in arrays:
            raise InputError(f"--input {name}=...: given twice; leave one of them out")
        arrays[name] = array

    for option in options:
        name, separator, file = option.rpartition("=")
        loaded = _load(Path(file))
        if isinstance(loaded, Mapping):
            if separator:
                raise InputError(
                    f"--input {option}: an .npz names its arrays itself: --input {file}"
                )
            for entry, array in loaded.items():
                add(entry, array)
        elif separator:
            add(name, loaded)
        elif len(names) == 1:
            add(names[0], loaded)
        else:
            raise InputError(
                f"--input {option}: say which input it is for: NAME={file} "
                f"(NAME is one of {', '.join(names)})"
            )
    unknown = sorted(set(arrays) - set(names))
    if unknown:
        raise InputError(f"no input is named {', '.join(unknown)}; there are {', '.join(names)}")
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(
            f"no value for input {', '.join(missing)}: give --input {missing[0]}=FILE.npy"
        )
    return arrays


def _load(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    import numpy as np

    try:
        with open(open_regular(path), "rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return _in_rows(loaded)
            return {name: _in_rows(loaded[name]) for name in loaded.files}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except Exception as error:  # numpy raises ValueError, BadZipFile, EOFError, OSError ...
        raise InputError(f"{path}: not a .npy or .npz file ({error})") from error


def _in_rows(array: np.ndarray) -> np.ndarray:
    """As modules take arrays: files may hold them by columns, or in the other byte order."""
    import numpy as np

    if not isinstance(array, np.ndarray):
        raise ValueError("it holds something that is no array")
    native = array.dtype.newbyteorder("=") if array.dtype.kind in "biufc" else array.dtype
    return array.astype(native, order="C", copy=False)
