"""Compiling C and linking for any target with `zig cc`, which PyPI's `ziglang` brings along."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from compiler.errors import BuildError
from targets.spec import TargetSpec

_C_FLAGS = (
    "-std=gnu11", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-ffunction-sections",
    "-fdata-sections", "-fno-sanitize=all", "-fno-stack-protector", "-Wno-unused-function",
)  # fmt: skip


def _triple(spec: TargetSpec, libc: str) -> str:
    return spec.link_triple + f"-{libc}" + ("eabihf" if spec.architecture == "arm" else "")


def run_zig(arguments: Sequence[str | Path], purpose: str) -> None:
    """Run `zig ARGUMENTS`; raises `BuildError` with the command and its output."""
    command = [sys.executable, "-m", "ziglang", *map(str, arguments)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"cannot run the linker to {purpose}: {error}") from error
    if result.returncode:
        output = " | ".join(line for line in result.stderr.strip().splitlines()[-5:])
        raise BuildError(
            f"zig could not {purpose} (exit status {result.returncode}): {output}; "
            f"the command was: {' '.join(command)}"
        )


def _compile_options(spec: TargetSpec, libc: str, include: Sequence[Path]) -> list[str]:
    # No -mcpu: zig builds its libc once for every CPU it is given, which takes half a minute,
    # and the C code only drives the kernels, which LLVM has compiled for the CPU.
    options = ["cc", "-target", _triple(spec, libc), *_C_FLAGS]
    return [*options, *(f"-I{folder}" for folder in include)]


def compile_c(source: Path, result: Path, spec: TargetSpec, include: Sequence[Path]) -> None:
    """Compile one C file against glibc into a position-independent object."""
    options = _compile_options(spec, "gnu", include)
    run_zig([*options, "-c", source, "-o", result], f"compile {source.name}")


def link_shared(
    objects: Sequence[Path],
    result: Path,
    spec: TargetSpec,
    include: Sequence[Path],
    definitions: Sequence[str],
    exported: Sequence[str],
    libraries: Sequence[str] = (),
) -> None:
    """Link objects and C sources into a shared library that exports `exported` and nothing else.

    `libraries` are those of the C library besides `m` and `pthread`.
    """
    script = result.with_suffix(".map")
    symbols = "".join(f" {name};" for name in exported)
    script.write_text(f"{{ global:{symbols} local: *; }};\n")
    options = [*_compile_options(spec, "gnu", include), *(f"-D{d}" for d in definitions)]
    run_zig(
        [
            *options, "-shared", "-s", "-Wl,--gc-sections", "-Wl,-z,defs",
            f"-Wl,--version-script={script}", "-o", result, *objects, "-lm", "-lpthread",
            *(f"-l{name}" for name in libraries),
        ],
        f"link {result.name}",
    )  # fmt: skip
    script.unlink()


def link_objects(objects: Sequence[Path], result: Path, spec: TargetSpec) -> None:
    """Link objects into a shared library that leaves symbols to its host and exports all."""
    options = _compile_options(spec, "gnu", ())
    run_zig([*options, "-shared", "-o", result, *objects, "-lm"], f"link {result.name}")


def link_executable(
    sources: Sequence[Path],
    result: Path,
    spec: TargetSpec,
    include: Sequence[Path],
    definitions: Sequence[str],
) -> None:
    """Compile and link C sources and objects into a static executable (musl)."""
    options = _compile_options(spec, "musl", include)
    run_zig(
        [
            *options, *(f"-D{d}" for d in definitions), "-static", "-s", "-Wl,--gc-sections",
            "-o", result, *sources, "-lm", "-lpthread",
        ],
        f"link {result.name}",
    )  # fmt: skip


def make_archive(objects: Sequence[Path], result: Path) -> None:
    """Collect objects into a static library."""
    run_zig(["ar", "rcsD", result, *objects], f"write {result.name}")
