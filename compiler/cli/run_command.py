"""`tinsmith run`: a module on data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinsmith.compiler.cli import early, output
from tinsmith.compiler.cli.options import AsJson, ModulePath, Threads
from tinsmith.compiler.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np


@output.reported
def run_module(
    module: ModulePath,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="NAME=FILE.npy", help="Data for an input."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.npz", help="Write the outputs to this .npz."),
    ] = None,
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """Run a module on numpy arrays and write or summarise what comes out.

    **Example:** `tinsmith run out/ --input input=photo.npy -o scores.npz`
    """
    if out is not None and out.suffix != ".npz":
        raise ConfigError(f"--output {out}: the outputs are written as .npz")
    early.check_new_file("--output", out)
    early.check_module(module)
    with output.progress_bar("run", hidden=as_json) as show:
        from tinsmith.compiler.module.array_files import read_arrays, write_arrays
        from tinsmith.compiler.module.loader import load

        show("load", 0.0)
        loaded = load(module, threads=threads)
        arrays = read_arrays(inputs or [], [entry.name for entry in loaded.manifest.inputs])
        show("compute", 0.5)
        begin = time.perf_counter()
        computed = loaded.run(arrays, strict=True)  # files are what they say
        seconds = time.perf_counter() - begin
    results = dict(zip((entry.name for entry in loaded.outputs), computed, strict=True))
    if out is not None:
        write_arrays(out, results)
    rows = [
        (name, value.dtype.name, value.shape, *_range(value)) for name, value in results.items()
    ]
    if as_json:
        output.print_json(
            {
                "seconds": seconds,
                "written": None if out is None else str(out),
                "outputs": {
                    name: {"dtype": dtype, "shape": list(shape), "minimum": low, "maximum": high}
                    for name, dtype, shape, low, high in rows
                },
            }
        )
        return
    cells = [(*row[:3], *("-" if v is None else f"{v:.6g}" for v in row[3:])) for row in rows]
    output.print_table("", ("output", "dtype", "shape", "minimum", "maximum"), cells, left=3)
    output.say(
        f"ran in {output.milliseconds(seconds)} ms (one cold run)"
        + (f"; wrote {out}" if out else "")
    )


def _range(value: np.ndarray) -> tuple[float | None, float | None]:
    """Smallest and largest value, or None for an empty array."""
    if value.size == 0:
        return None, None
    return float(value.min()), float(value.max())
