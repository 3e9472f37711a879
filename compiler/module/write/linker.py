"""Compiling C and linking for any target with `zig cc`, which PyPI's `ziglang` brings along."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tinsmith.compiler.errors import BuildError
from tinsmith.compiler.module.write.elf import drop_debug_sections
from tinsmith.compiler.processes import ending_with_this
from tinsmith.compiler.user_folders import tool_cache
from tinsmith.targets.spec import TargetSpec

# The C library of a target is built when it is first linked for, which takes half a minute.
_LIMIT_SECONDS = 900
_LONGEST_OUTPUT = 600

_C_FLAGS = (
    "-std=gnu11", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-ffunction-sections",
    "-fdata-sections", "-fno-sanitize=all", "-fno-stack-protector", "-Wno-unused-function",
)  # fmt: skip

# What the tools inside zig say of it.
_DISK_FULL = ("NoSpaceLeft", "No space left on device")


def _triple(spec: TargetSpec, libc: str) -> str:
    return f"{spec.link_triple}-{libc}{spec.link_abi}"


def run_zig(arguments: Sequence[str | Path], purpose: str, folder: Path | None = None) -> None:
    """Run `zig ARGUMENTS` in `folder`; it ends with this process.

    Raises `BuildError` with the command and its output when it fails, or takes too long.
    """
    command = [_zig(), *map(str, arguments)]
    shown = f"the command was: {' '.join(['python -m ziglang', *map(str, arguments)])}"
    try:
        code, output = _attended(command, folder)
    except subprocess.TimeoutExpired as error:
        raise BuildError(
            f"zig could not {purpose} within {_LIMIT_SECONDS} s and was stopped; {shown}"
        ) from error
    except OSError as error:
        raise BuildError(f"cannot run the linker to {purpose}: {error}") from error
    if code and any(sign in output for sign in _DISK_FULL):
        places = f"{_cache()} (ZIG_GLOBAL_CACHE_DIR), {tempfile.gettempdir()} (TMPDIR)"
        raise BuildError(f"zig could not {purpose}: the disk is full; it writes to {places}")
    if code:
        told = " | ".join(output.strip().splitlines()[-5:])[-_LONGEST_OUTPUT:]
        raise BuildError(f"zig could not {purpose} (exit status {code}): {told}; {shown}")


@lru_cache(maxsize=1)
def _zig() -> str:
    found = importlib.util.find_spec("ziglang")
    if found is None or found.origin is None:
        raise BuildError(
            "the package ziglang, which links modules, is missing: pip install ziglang"
        )
    return str(Path(found.origin).with_name("zig"))


def _cache() -> str:
    return os.environ.get("ZIG_GLOBAL_CACHE_DIR") or str(tool_cache())


def _attended(command: Sequence[str], folder: Path | None) -> tuple[int, str]:
    """Exit code and error output of a command that dies with this process."""
    cache = _cache()
    places = {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
    process = subprocess.Popen(
        ending_with_this(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=folder,
        env=os.environ | places,
        # A group of its own, to be stopped with all that zig has started.
        start_new_session=True,
    )
    with process:
        try:
            _, output = process.communicate(timeout=_LIMIT_SECONDS)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output


def _compile_options(spec: TargetSpec, libc: str, include: Sequence[str]) -> list[str]:
    # No -mcpu: zig builds its libc once for every CPU it is given, which takes half a minute,
    # and the C code only drives the kernels, which LLVM has compiled for the CPU.
    options = ["cc", "-target", _triple(spec, libc), *_C_FLAGS]
    return [*options, *(f"-I{folder}" for folder in include)]


def _seen_from(folder: Path, paths: Sequence[Path]) -> list[str]:
    """Names of `paths` for a command that runs in `folder`.

    zig cannot read back what it writes about files in folders with quotes or backslashes, and
    a comma ends an option of the linker: the folder's own name is told to neither.
    """
    here = folder.resolve()
    return [os.path.join(".", os.path.relpath(path.resolve(), here)) for path in paths]


def compile_c(source: Path, result: Path, spec: TargetSpec, include: Sequence[Path]) -> None:
    """Compile one C file against glibc into a position-independent object."""
    folder = source.parent
    options = _compile_options(spec, "gnu", _seen_from(folder, include))
    names = _seen_from(folder, [source, result])
    run_zig([*options, "-c", names[0], "-o", names[1]], f"compile {source.name}", folder)


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

    Names of all functions stay in its symbol table, for profilers and disassemblers.

    `libraries` are those of the C library besides `m` and `pthread`.
    """
    folder = result.parent
    script = result.with_suffix(".map")
    symbols = "".join(f" {name};" for name in exported)
    script.write_text(f"{{ global:{symbols} local: *; }};\n")
    options = _compile_options(spec, "gnu", _seen_from(folder, include))
    run_zig(
        [
            *options, *(f"-D{d}" for d in definitions),
            "-shared", "-Wl,--gc-sections", "-Wl,-z,defs",
            f"-Wl,--version-script={script.name}", "-o", f"./{result.name}",
            *_seen_from(folder, objects), "-lm", "-lpthread", *(f"-l{name}" for name in libraries),
        ],
        f"link {result.name}",
        folder,
    )  # fmt: skip
    script.unlink()
    drop_debug_sections(result)


def link_objects(objects: Sequence[Path], result: Path, spec: TargetSpec) -> None:
    """Link objects into a shared library that leaves symbols to its host and exports all."""
    folder = result.parent
    options = [*_compile_options(spec, "gnu", ()), "-shared", "-o", f"./{result.name}"]
    run_zig([*options, *_seen_from(folder, objects), "-lm"], f"link {result.name}", folder)


def link_executable(
    sources: Sequence[Path],
    result: Path,
    spec: TargetSpec,
    include: Sequence[Path],
    definitions: Sequence[str],
) -> None:
    """Compile and link C sources and objects into a static executable (musl)."""
    folder = result.parent
    options = _compile_options(spec, "musl", _seen_from(folder, include))
    run_zig(
        [
            *options, *(f"-D{d}" for d in definitions), "-static", "-Wl,--gc-sections",
            "-o", f"./{result.name}", *_seen_from(folder, sources), "-lm", "-lpthread",
        ],
        f"link {result.name}",
        folder,
    )  # fmt: skip
    drop_debug_sections(result)


def make_archive(objects: Sequence[Path], result: Path) -> None:
    """Collect objects into a static library."""
    names = _seen_from(result.parent, [result, *objects])
    run_zig(["ar", "rcsD", *names], f"write {result.name}", result.parent)
