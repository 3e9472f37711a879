"""A module's files as they are checked and then used: one descriptor for both.

A name could be given to another file between the check and the use of it; a descriptor cannot.
A small file is copied into memory first, so that whoever rewrites it in place changes nothing
either, neither before the digest nor afterwards. A file of `MAP_FROM_BYTES` or more is used
where it is: it must be replaced, never rewritten, while a process uses it.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from blake3 import blake3

from tinsmith.compiler.errors import ArtifactError
from tinsmith.compiler.module.manifest import MAP_FROM_BYTES, FileDigest, Manifest, digest_bytes
from tinsmith.compiler.module.regular_file import open_regular

_CHUNK_BYTES = 2**20
_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def open_checked(path: Path, manifest: Manifest) -> int:
    """A descriptor of the module's file `path`, whose content has the manifest's digest.

    Raises ArtifactError when the file is not listed, is missing, is no regular file or differs.
    """
    if path.name not in manifest.files:
        raise ArtifactError(f"{path}: not listed in the manifest; compile the model again")
    expected = manifest.files[path.name]
    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise ArtifactError(
            f"{path}: {error.strerror}; the module is incomplete, compile the model again"
        ) from error
    try:
        matches = os.fstat(descriptor).st_size == expected.bytes
        if matches and expected.bytes < MAP_FROM_BYTES:
            descriptor = _in_memory(descriptor, path.name, expected.bytes)
            matches = os.fstat(descriptor).st_size == expected.bytes
        matches = matches and _digest(descriptor) == expected
        if not matches:
            raise ArtifactError(
                f"{path}: does not match its digest in the manifest; the file was changed or "
                "damaged, compile the model again"
            )
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):
            raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
        raise
    return descriptor


def read_checked(path: Path, manifest: Manifest) -> bytes:
    """The content of the module's file `path`; errors as of `open_checked`."""
    with open(open_checked(path, manifest), "rb") as stream:
        content = stream.read()
    if len(content) < MAP_FROM_BYTES or digest_bytes(content) == manifest.files[path.name]:
        return content
    raise ArtifactError(f"{path}: was changed while it was read; compile the model again")


def _digest(descriptor: int) -> FileDigest:
    # Read, not mapped: a file that shrinks meanwhile would be a bus error.
    hasher, size = blake3(), 0
    while chunk := os.pread(descriptor, _CHUNK_BYTES, size):
        hasher.update(chunk)
        size += len(chunk)
    return FileDigest(size, hasher.hexdigest())


def _in_memory(descriptor: int, name: str, size: int) -> int:
    """A sealed copy of an open file without a name; takes `descriptor` over.

    Where the system allows no such files, `descriptor` itself.
    """
    try:
        copy = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return descriptor
    try:
        position = 0
        while position < size:
            sent = os.sendfile(copy, descriptor, position, size - position)
            if sent == 0:
                break
            position += sent
        os.lseek(copy, 0, os.SEEK_SET)
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(copy)
        raise
    os.close(descriptor)
    return copy
