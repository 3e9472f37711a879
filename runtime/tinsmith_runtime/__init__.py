"""Runs compiled modules without the compiler: `import tinsmith` as ever, or this package.

    import tinsmith

    module = tinsmith.load("out/")

The folder `packages` beside this file holds the part of `tinsmith` that runs modules, and
`tinsmith_runtime.pth` puts it last on the search path: where the whole distribution `tinsmith` is
installed too, that is imported, from here as well. Python reads no `.pth` files in folders that
are only named on the path (`pip install --target`, zipped applications): there, import
`tinsmith_runtime` first, or in the place of `tinsmith`.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec("tinsmith") is None:
    sys.path.append(str(Path(__file__).parent / "packages"))

import tinsmith

__all__ = tinsmith.__all__


def __getattr__(name: str) -> Any:
    return getattr(tinsmith, name)


def __dir__() -> list[str]:
    return dir(tinsmith)


def main() -> None:
    """Entry point of the console script `tinsmith-runtime`."""
    from tinsmith.compiler.runtime_command import main as run

    sys.exit(run())
