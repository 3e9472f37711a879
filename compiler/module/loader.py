"""Loading compiled modules. TVM is needed for the VM form alone, zstandard for archives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinsmith.compiler.errors import ArtifactError, TinsmithError
from tinsmith.compiler.module.base import Context, Module, StepTime
from tinsmith.compiler.module.levels import level_folder, levels_of, place_of
from tinsmith.compiler.module.machine import check_machine
from tinsmith.compiler.module.manifest import Manifest, read_manifest
from tinsmith.compiler.module.module_file import open_checked
from tinsmith.compiler.module.selfcontained import SelfContainedModule
from tinsmith.compiler.processes import at_end
from tinsmith.compiler.scratch import ScratchFolder

__all__ = ["Context", "Module", "StepTime", "folder_of", "load", "verify_files"]


def load(path: str | os.PathLike[str], threads: int = 0, level: str | None = None) -> Module:
    """Load the compiled module in the folder or archive `path`.

    An archive, see `tinsmith.pack`, is unpacked into a temporary folder, which is deleted with
    the module. Of a module for several targets the best that this machine runs is taken, or that
    of the name `level`. `threads` share each parallel loop (0: as many as the process may use).
    Before any code is loaded, the manifest's format, the CPU's features and the
    digests of code and weights are checked. Raises `ArtifactError` when the
    module is damaged, of another format, or for another machine, ConfigError for an unknown level.
    """
    temporary = _unpacked(Path(path))
    if temporary is None:
        return _load_folder(level_folder(Path(path), level), threads)
    try:
        module = _load_folder(level_folder(temporary.path, level), threads)
    except BaseException as error:
        temporary.close()
        if isinstance(error, ArtifactError):  # the user knows the archive alone
            message = str(error).replace(str(temporary.path), str(path))
            raise ArtifactError(message) from error
        raise
    at_end(module, temporary.close)
    module._origin = Path(path)
    return module


def _unpacked(path: Path) -> ScratchFolder | None:
    """A temporary folder with the module, if it is an archive."""
    if not path.is_file():
        return None
    from tinsmith.compiler.module.archive import is_archive, unpack

    if not is_archive(path):
        raise ArtifactError(f"{path}: neither a module's folder nor an archive of one")
    return unpack(path)


def _load_folder(folder: Path, threads: int) -> Module:
    manifest = read_manifest(folder)
    check_machine(str(folder), manifest.target)
    module: Module
    if manifest.form == "vm":
        try:
            from tinsmith.compiler.module.vm_loader import VirtualMachineModule
        except ModuleNotFoundError as error:
            raise ArtifactError(
                f"{folder}: is in the VM form ({manifest.vm_reason}), which needs {error.name}: "
                "pip install 'tinsmith-runtime[vm]'"
            ) from error

        module = VirtualMachineModule(folder, manifest)
    elif manifest.form == "self-contained":
        module = SelfContainedModule(folder, manifest)
    else:
        raise ArtifactError(f"{folder}: unknown form {manifest.form!r}; compile the model again")
    try:
        module.threads = threads
    except TinsmithError:
        module.close()
        raise
    return module


def verify_files(path: str | os.PathLike[str]) -> Manifest:
    """Check the digests of all files of a module, in a folder or an archive.

    The manifest is that of the level that `load` takes. Raises `ArtifactError` for the first
    file that differs.
    """
    with folder_of(Path(path)) as folder:
        for level in levels_of(folder):
            manifest = read_manifest(level.folder)
            for name in manifest.files:
                os.close(open_checked(place_of(level.folder, name), manifest))
        return read_manifest(level_folder(folder))


@contextmanager
def folder_of(path: Path) -> Iterator[Path]:
    """The folder of a module; that of an archive is temporary, and deleted at the end.

    Raises `ArtifactError` for a damaged archive.
    """
    temporary = _unpacked(path)
    try:
        yield path if temporary is None else temporary.path
    finally:
        if temporary is not None:
            temporary.close()
