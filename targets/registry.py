"""All targets by name."""

from __future__ import annotations

import difflib
import re

from tinsmith.targets.arm.specs import SPECS as ARM_SPECS
from tinsmith.targets.spec import TargetSpec, UnknownTargetError
from tinsmith.targets.x86.detect import DetectionError, detect_native
from tinsmith.targets.x86.specs import SPECS as X86_SPECS

_SPECS = {spec.name: spec for spec in (*X86_SPECS, *ARM_SPECS)}
NATIVE = "native"
# How names of graphics processors begin: they deserve a better answer than a similar name.
_GPU = re.compile(r"(cuda|gpu|nvptx|nvidia|rocm|opencl|vulkan|metal|sm_?\d)", re.IGNORECASE)


def get_target(name: str) -> TargetSpec:
    """The specification of a target; "native" is the machine that this process runs on.

    Raises `UnknownTargetError` for a name that is not known, or when the
    machine cannot be described.
    """
    if name == NATIVE:
        try:
            return detect_native()
        except DetectionError as error:
            raise UnknownTargetError(f"target 'native': {error}") from error
    if _GPU.match(name):
        raise UnknownTargetError(
            f"target {name!r}: there are no kernels for GPUs, whether this machine has one or not; "
            f"take a CPU as target: {', '.join(target_names())}"
        )
    if name not in _SPECS:
        close = difflib.get_close_matches(name, target_names(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UnknownTargetError(
            f"unknown target {name!r}{hint} (known: {', '.join(target_names())})"
        )
    return _SPECS[name]


def target_names() -> tuple[str, ...]:
    """Names that `get_target` knows; "native" first where this machine can be described."""
    try:
        detect_native()
    except DetectionError:
        return tuple(_SPECS)
    return (NATIVE, *_SPECS)
