"""Loaded libraries, each once however many modules use it.

Modules of equal content share code, weights and threads; only the last one to close may stop
the threads and unload the library. The library is loaded through the descriptor whose digest
was checked. That stays open meanwhile: its number makes the name under `/proc/self/fd` unique,
and keeps the file's inode from being given to another file.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinsmith.compiler.errors import ArtifactError
from tinsmith.compiler.module.cinterface import ABI, FixedModuleStruct, ModuleStruct
from tinsmith.compiler.module.levels import place_of
from tinsmith.compiler.module.manifest import FileDigest, Manifest
from tinsmith.compiler.module.module_file import open_checked
from tinsmith.compiler.processes import lock_that_forks_open

LIBRARY_NAME = "model.so"
WEIGHTS_NAME = "weights.bin"

_INTERFACES: Mapping[int, type[ctypes.Structure]] = {1: FixedModuleStruct, ABI: ModuleStruct}

_Key = tuple[FileDigest, FileDigest | None]
# Collecting garbage may release a library while another is acquired.
_lock = lock_that_forks_open(reentrant=True)
_loaded: dict[_Key, SharedLibrary] = {}


class SharedLibrary:
    """One `model.so` in this process; made by `acquire`, given back by `release`."""

    def __init__(self, folder: Path, key: _Key, library: int, weights: int | None) -> None:
        self._key = key
        self._descriptor = library
        self._users = 0
        self._handle = ctypes.CDLL(f"/proc/self/fd/{library}", mode=os.RTLD_LOCAL | os.RTLD_NOW)
        try:
            # A fixed name, not one from the manifest: the lookup also sees libc's functions.
            entry = self._handle.tinsmith_get_module
            entry.restype = ctypes.c_void_p
            address = entry()
            abi = ctypes.c_uint32.from_address(address).value
            if abi not in _INTERFACES:
                raise ArtifactError(
                    f"{folder}: runtime interface {abi}, this Tinsmith needs {ABI}; "
                    "compile the model again"
                )
            self.interface: Any = _INTERFACES[abi].from_address(address)
            path = None if weights is None else f"/proc/self/fd/{weights}".encode()
            if self.interface.open(path):
                message = self.interface.last_error().decode(errors="replace")
                raise ArtifactError(f"{folder}: {message}")
        except BaseException:
            self._unload()
            raise

    @staticmethod
    def acquire(folder: Path, manifest: Manifest) -> SharedLibrary:
        """The library of the module in `folder`, once its files have been checked.

        Raises ArtifactError if they differ from the manifest or are not ours.
        """
        names = [LIBRARY_NAME] if manifest.weights_embedded else [LIBRARY_NAME, WEIGHTS_NAME]
        opened: list[int] = []
        try:
            for name in names:
                opened.append(open_checked(place_of(folder, name), manifest))
            digests = [manifest.files[name] for name in names]
            key = (digests[0], digests[1] if len(digests) > 1 else None)
            with _lock:
                found = _loaded.get(key)
                if found is None:
                    found = SharedLibrary(folder, key, opened[0], (*opened, None)[1])
                    _loaded[key] = found
                    del opened[0]  # it belongs to the library from now on
                found._users += 1
                return found
        except (OSError, AttributeError) as error:
            raise ArtifactError(f"{folder}: {LIBRARY_NAME} cannot be loaded: {error}") from error
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def release(self) -> None:
        """Give the library back; the last user stops its threads and unloads it."""
        with _lock:
            self._users -= 1
            if self._users:
                return
            del _loaded[self._key]
            self.interface.close()
            self._unload()
            os.close(self._descriptor)

    def _unload(self) -> None:
        ctypes.CDLL(None).dlclose(ctypes.c_void_p(self._handle._handle))
