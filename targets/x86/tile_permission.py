"""Linux lets a process use AMX tiles only after it has asked for them.

Their state is 8 KiB, for which the kernel would otherwise have to reserve room
in every thread (Linux, Documentation/arch/x86/xstate.rst).
"""

from __future__ import annotations

import ctypes
import os
import platform

_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


def request_tiles() -> bool:
    """Asks for tiles for this process and all its threads; whether they may be used now.

    False too where the CPU has none, or the system does not know them.
    """
    if os.name != "posix" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    system = ctypes.CDLL(None, use_errno=True)
    return bool(system.syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0)


# The same in C, for modules that use tiles: see `Backend.machine_check`.
C_SOURCE = """\
/* AMX tiles: Linux lets a process use them only after it has asked for them. */
#include <sys/syscall.h>
#include <unistd.h>

enum { REQUEST_PERMISSION = 0x1023 /* ARCH_REQ_XCOMP_PERM */, TILE_DATA = 18 };

/* Holds for all threads of the process; asking again changes nothing. */
static int machine_refuses(void) {
  if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0) return 0;
  return fail("this module needs AMX tiles, which this CPU or its system lacks",
              "compile it with another --target");
}
"""
