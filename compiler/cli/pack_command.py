"""`tinsmith pack`: a module as one compressed file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinsmith.compiler.byte_size import byte_size
from tinsmith.compiler.cli import early, output
from tinsmith.compiler.cli.options import AsJson
from tinsmith.compiler.module.compression import DEFAULT_LEVEL, LEVELS


@output.reported
def pack_module(
    module: Annotated[
        Path, typer.Argument(metavar="MODULE", help="A folder of `tinsmith compile`.")
    ],
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file: module.tar.zst.")
    ],
    level: Annotated[
        int, typer.Option(help=f"Of Zstandard: {LEVELS[0]} (fast) to {LEVELS[1]} (small).")
    ] = DEFAULT_LEVEL,
    as_json: AsJson = False,
) -> None:
    """Pack a module into one file, compressed, that other commands take like the folder.

    **Example:** `tinsmith pack out/ -o resnet50.tar.zst`
    """
    early.check_module(module)
    with output.progress_bar("pack", hidden=as_json) as show:
        from tinsmith.compiler.module.archive import pack
        from tinsmith.compiler.module.manifest import read_manifest

        show("compress", 0.0)
        packed = pack(module, out, level)
    whole = sum(digest.bytes for digest in read_manifest(module).files.values())
    if as_json:
        output.print_json({"path": str(out), "bytes": packed, "unpacked_bytes": whole})
        return
    output.say(
        f"{out}: {byte_size(packed)}, {packed / whole:.0%} of the {byte_size(whole)} in the folder"
    )
