"""Runs a program that does not outlive its parent: python attended.py PARENT PROGRAM ARGUMENT...

A script and not a module of the package: it must start in a few milliseconds.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == int(sys.argv[1]):  # else the parent has died before
        os.execv(sys.argv[2], sys.argv[2:])
