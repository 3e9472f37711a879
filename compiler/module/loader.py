"""Loading compiled modules. TVM is needed for the VM form alone, zstandard for archives."""

from __future__ import annotations

import mmap
import os
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compiler.errors import ArtifactError, TinsmithError
from compiler.module.base import Context, Module, StepTime
from compiler.module.machine import check_machine
from compiler.module.manifest import Manifest, digest_bytes, read_manifest
from compiler.module.selfcontained import SelfContainedModule

__all__ = ["Context", "Module", "StepTime", "folder_of", "load", "verify_files"]


def load(path: str | os.PathLike[str], threads: int = 0) -> Module:
    """Load the compiled module in the folder or archive `path`.

    An archive, see `compiler.pack`, is unpacked into a temporary folder, which is deleted with
    the module. `threads` share each parallel loop (0: as many as the process may use).
    Before any code is loaded, the manifest's format, the CPU's features and the
    digests of code and weights are checked. Raises `ArtifactError` when the
    module is damaged, of another format, or for another machine.
    """
    temporary = _unpacked(Path(path))
    if temporary is None:
        return _load_folder(Path(path), threads)
    try:
        module = _load_folder(temporary, threads)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, ArtifactError):  # the user knows the archive alone
            message = str(error).replace(str(temporary), str(path))
            raise ArtifactError(message) from error
        raise
    weakref.finalize(module, shutil.rmtree, temporary, ignore_errors=True)
    return module


def _unpacked(path: Path) -> Path | None:
    """A temporary folder with the module, if it is an archive."""
    if not path.is_file():
        return None
    from compiler.module.archive import is_archive, unpack

    if not is_archive(path):
        raise ArtifactError(f"{path}: neither a module's folder nor an archive of one")
    return unpack(path)


def _load_folder(folder: Path, threads: int) -> Module:
    manifest = read_manifest(folder)
    check_machine(str(folder), manifest.target)
    module: Module
    if manifest.form == "vm":
        from compiler.module.vm_loader import LIBRARY_NAME, VirtualMachineModule

        os.close(_open_checked(folder / LIBRARY_NAME, manifest))
        module = VirtualMachineModule(folder, manifest)
    elif manifest.form == "self-contained":
        module = _load_self_contained(folder, manifest)
    else:
        raise ArtifactError(f"{folder}: unknown form {manifest.form!r}; compile the model again")
    try:
        module.threads = threads
    except TinsmithError:
        module.close()
        raise
    return module


def _load_self_contained(folder: Path, manifest: Manifest) -> SelfContainedModule:
    if not manifest.weights_embedded:
        os.close(_open_checked(folder / "weights.bin", manifest))
    library = _open_checked(folder / "model.so", manifest)
    try:
        return SelfContainedModule(folder, manifest, library)
    except (OSError, AttributeError) as error:
        raise ArtifactError(f"{folder}: model.so cannot be loaded: {error}") from error


def verify_files(path: str | os.PathLike[str]) -> Manifest:
    """Check the digests of all files of a module, in a folder or an archive.

    Raises `ArtifactError` for the first that differs.
    """
    with folder_of(Path(path)) as folder:
        manifest = read_manifest(folder)
        for name in manifest.files:
            os.close(_open_checked(folder / name, manifest))
    return manifest


@contextmanager
def folder_of(path: Path) -> Iterator[Path]:
    """The folder of a module; that of an archive is temporary, and deleted at the end.

    Raises `ArtifactError` for a damaged archive.
    """
    temporary = _unpacked(path)
    try:
        yield path if temporary is None else temporary
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _open_checked(path: Path, manifest: Manifest) -> int:
    """Open a file and compare it with the manifest; returns the descriptor."""
    if path.name not in manifest.files:
        raise ArtifactError(f"{path}: not listed in the manifest; compile the model again")
    expected = manifest.files[path.name]
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ArtifactError(
            f"{path}: {error.strerror}; the module is incomplete, compile the model again"
        ) from error
    size = os.fstat(descriptor).st_size
    matches = size == expected.bytes
    if matches and size:
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as content:
            matches = digest_bytes(content) == expected
    if not matches:
        os.close(descriptor)
        raise ArtifactError(
            f"{path}: does not match its digest in the manifest; the file was changed or damaged, "
            "compile the model again"
        )
    return descriptor
