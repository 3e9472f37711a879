"""A module as one file: its folder as a tar archive, compressed by Zstandard.

The archive holds `manifest.json` first, then the files that it lists, nothing else. Equal
modules give equal archives: no time stamp, owner or path is stored.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path
from typing import Any, BinaryIO

from tinsmith.compiler.errors import ArtifactError, BuildError, ConfigError
from tinsmith.compiler.module.compression import DEFAULT_LEVEL, LEVELS
from tinsmith.compiler.module.levels import has_levels, levels_of
from tinsmith.compiler.module.manifest import FILE_NAME as MANIFEST_NAME
from tinsmith.compiler.module.manifest import read_manifest
from tinsmith.compiler.module.regular_file import open_regular
from tinsmith.compiler.scratch import ScratchFolder, replacing

MAGIC = b"\x28\xb5\x2f\xfd"
# A manifest is read before anything is known of the archive.
_LARGEST_MANIFEST = 64 * 2**20
_LARGEST_HEADER = 2**16
# Weights of zeros pack well; a few kilobytes must not fill the disk.
_LARGEST_MODULE, _TIMES_COMPRESSED = 2**30, 100
# 128 MiB, the most that decoders accept unasked: libraries and runner repeat the same weights.
_WINDOW_LOG = 27


class _Member(tarfile.TarInfo):
    """A member whose extended headers, which are read into memory, are as short as ours."""

    _EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
                 tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)  # fmt: skip

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type in cls._EXTENDED and not 0 <= member.size <= _LARGEST_HEADER:
            raise ArtifactError(f"a header of {member.size} bytes does not belong there")
        return member


def _zstandard_for(path: Path) -> Any:
    """The package that compresses; ArtifactError, which begins with `path`, if it is not there."""
    try:
        import zstandard  # an extra of `tinsmith-runtime`
    except ModuleNotFoundError as error:
        raise ArtifactError(
            f"{path}: archives need zstandard: pip install 'tinsmith-runtime[archive]'"
        ) from error
    return zstandard


def is_archive(path: Path) -> bool:
    """Whether a file begins as Zstandard data do; OSError if it cannot be read."""
    with open(open_regular(path), "rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def pack(
    module: str | os.PathLike[str],
    archive: str | os.PathLike[str],
    level: int = DEFAULT_LEVEL,
) -> int:
    """Write the module in the folder `module` to the file `archive`; its size in bytes.

    `tinsmith.load` takes the archive like the folder. `level` is Zstandard's, 1 (fast) to 19
    (small). An existing file is replaced at once or not at all.

    Raises ArtifactError for a damaged module, ConfigError for an unknown level, BuildError if
    the archive cannot be written.
    """
    from tinsmith.compiler.module.loader import verify_files  # imports numpy

    if not isinstance(level, int) or isinstance(level, bool) or not _within(level):
        raise ConfigError(f"--level {level}: expected an integer from {LEVELS[0]} to {LEVELS[1]}")
    folder, destination = Path(module), Path(archive)
    _zstandard_for(destination)
    if destination.is_dir():
        raise BuildError(f"{destination}: is a folder; choose a file, such as module.tar.zst")
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: not a compiled module (no folder)")
    if has_levels(folder):
        listed = ", ".join(level.name for level in levels_of(folder))
        raise ConfigError(
            f"{folder}: is a module for several targets ({listed}); an archive holds one: compile "
            "for one target, or pack the folder with tar"
        )
    names = [MANIFEST_NAME, *sorted(verify_files(folder).files)]
    try:
        with replacing(destination) as stream:
            _write(stream, folder, names, level)
    except OSError as error:
        raise BuildError(f"{destination}: cannot be written: {error.strerror}") from error
    return destination.stat().st_size


def unpack(archive: Path) -> ScratchFolder:
    """A new temporary folder with the module in `archive`, every digest checked.

    Whoever calls closes it. Only files that the manifest lists are written, by their plain
    names. Raises ArtifactError for a damaged archive, and if it cannot be unpacked.
    """
    zstandard = _zstandard_for(archive)
    try:
        scratch = ScratchFolder()
    except OSError as error:
        raise ArtifactError(f"{archive}: cannot be unpacked: {error.strerror}") from error
    folder = scratch.path
    from tinsmith.compiler.module.loader import verify_files  # imports numpy

    try:
        _read(archive, folder)
        verify_files(folder)
    # Extensions of the format that tarfile knows and we never write raise what they like.
    except (ArtifactError, ArithmeticError, EOFError, LookupError, ValueError, tarfile.TarError,
            zstandard.ZstdError) as error:  # fmt: skip
        scratch.close()
        reason = str(error).replace(f"{folder}{os.sep}", "").replace(str(folder), str(archive))
        raise ArtifactError(f"{archive}: damaged archive: {reason}") from error
    except OSError as error:
        scratch.close()
        raise ArtifactError(f"{archive}: cannot be unpacked: {error.strerror}") from error
    except BaseException:
        scratch.close()
        raise
    return scratch


def _within(level: int) -> bool:
    return LEVELS[0] <= level <= LEVELS[1]


def _write(stream: BinaryIO, folder: Path, names: list[str], level: int) -> None:
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, window_log=_WINDOW_LOG, enable_ldm=True, write_checksum=True, threads=-1
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    with (
        compressor.stream_writer(stream, closefd=False) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in names:
            with open(folder / name, "rb") as content:
                member = tarfile.TarInfo(name)
                status = os.fstat(content.fileno())
                member.size = status.st_size
                member.mode = 0o755 if status.st_mode & 0o100 else 0o644
                tar.addfile(member, content)


def _read(archive: Path, folder: Path) -> None:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=2**_WINDOW_LOG)
    # Sizes of the members that are to come; the manifest, which is first, tells them.
    expected: dict[str, int] | None = None
    with (
        open(open_regular(archive), "rb") as stream,
        decompressor.stream_reader(stream, closefd=False) as content,
        tarfile.open(fileobj=content, mode="r|", tarinfo=_Member) as tar,
    ):
        most = max(_LARGEST_MODULE, _TIMES_COMPRESSED * os.fstat(stream.fileno()).st_size)
        for member in tar:
            if expected is None:
                known = member.name == MANIFEST_NAME and member.size <= _LARGEST_MANIFEST
            else:
                known = expected.pop(member.name, None) == member.size
            source = tar.extractfile(member) if known and member.isreg() else None
            if source is None:
                raise ArtifactError(f"{member.name!r} does not belong there")
            path = folder / member.name
            with open(path, "xb") as target:
                shutil.copyfileobj(source, target)
            path.chmod(0o755 if member.mode & 0o100 else 0o644)
            if expected is None:
                files = read_manifest(folder).files
                expected = {name: digest.bytes for name, digest in files.items()}
                if sum(expected.values()) > most:
                    raise ArtifactError(f"it unpacks to more than {most} bytes")
