"""Loaded libraries, each once however many modules use it.

The dynamic linker hands out a library that is loaded already when the same file
is opened again, so two modules from one folder share code, weights and threads;
only the last one to close may stop the threads and unload it. The descriptor
stays open meanwhile: its number makes the name under `/proc/self/fd` unique, and
keeps the file's inode from being given to another file.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

from compiler.errors import ArtifactError
from compiler.module.cinterface import ABI, ModuleStruct

_lock = threading.RLock()
_loaded: dict[tuple[int, int], SharedLibrary] = {}


class SharedLibrary:
    """One `model.so` in this process; made by `acquire`, given back by `release`."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self._descriptor = descriptor
        self._handle = ctypes.CDLL(f"/proc/self/fd/{descriptor}", mode=os.RTLD_LOCAL | os.RTLD_NOW)
        self._users = 0
        try:
            # A fixed name, not one from the manifest: the lookup also sees libc's functions.
            entry = self._handle.tinsmith_get_module
            entry.restype = ctypes.POINTER(ModuleStruct)
            self.interface: ModuleStruct = entry().contents
            if self.interface.abi != ABI:
                raise ArtifactError(
                    f"{folder}: runtime interface {self.interface.abi}, this Tinsmith needs {ABI}; "
                    "compile the model again"
                )
            if self.interface.open(os.fsencode(folder / "weights.bin")):
                message = self.interface.last_error().decode(errors="replace")
                raise ArtifactError(f"{folder}: {message}")
        except BaseException:
            self._unload()
            raise

    @staticmethod
    def acquire(folder: Path, descriptor: int) -> SharedLibrary:
        """The library of the open file `descriptor`, which belongs to it from now on.

        Raises ArtifactError if it is not one of ours, OSError or AttributeError if the
        dynamic linker refuses it.
        """
        status = os.fstat(descriptor)
        key = (status.st_dev, status.st_ino)
        with _lock:
            found = _loaded.get(key)
            if found is None:
                try:
                    found = _loaded[key] = SharedLibrary(folder, descriptor)
                except BaseException:
                    os.close(descriptor)
                    raise
            else:
                os.close(descriptor)
            found._users += 1
            return found

    def release(self) -> None:
        """Give the library back; the last user stops its threads and unloads it."""
        with _lock:
            self._users -= 1
            if self._users:
                return
            status = os.fstat(self._descriptor)
            del _loaded[status.st_dev, status.st_ino]
            self.interface.close()
            self._unload()
            os.close(self._descriptor)

    def _unload(self) -> None:
        ctypes.CDLL(None).dlclose(ctypes.c_void_p(self._handle._handle))
