"""All targets by name, and the backend of each: one line for each family."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from tinsmith.targets.arm.family import ARM
from tinsmith.targets.family import Family
from tinsmith.targets.machine_at_hand import process_architecture, usable_cores
from tinsmith.targets.spec import DetectionError, TargetSpec, UnknownTargetError
from tinsmith.targets.x86.family import X86

if TYPE_CHECKING:
    from tinsmith.targets.backend import Backend

FAMILIES: tuple[Family, ...] = (X86, ARM)
NATIVE = "native"
# How names of graphics processors begin: they deserve a better answer than a similar name.
_GPU = re.compile(r"(cuda|gpu|nvptx|nvidia|rocm|opencl|vulkan|metal|sm_?\d)", re.IGNORECASE)


def get_target(name: str) -> TargetSpec:
    """The specification of a target; "native" is the machine that this process runs on.

    Boards and servers go by their names, too, however written: `Raspberry Pi 4` is `cortex-a72`.

    Raises `UnknownTargetError` for a name that is not known, or when the
    machine cannot be described.
    """
    if name == NATIVE:
        try:
            return _detect()
        except DetectionError as error:
            raise UnknownTargetError(f"target 'native': {error}") from error
    if _GPU.match(name):
        raise UnknownTargetError(
            f"target {name!r}: there are no kernels for GPUs, whether this machine has one or not; "
            f"take a CPU as target: {', '.join(target_names())}"
        )
    specs, aliases = _specs(), target_aliases()
    name = aliases.get(_plain(name), name)
    if name not in specs:
        known = {_plain(n): n for n in (*target_names(), *aliases)}
        close = difflib.get_close_matches(_plain(name), known, n=1)
        hint = f"; did you mean {known[close[0]]!r}?" if close else ""
        raise UnknownTargetError(
            f"unknown target {name!r}{hint} (known: {', '.join(target_names())})"
        )
    return specs[name]


def portable_target() -> TargetSpec:
    """What every machine of this process's architecture runs.

    Raises `UnknownTargetError` if there is no such thing.
    """
    architecture = process_architecture()
    for family in FAMILIES:
        for spec in family.portable:
            if spec.architecture == architecture:
                return replace(spec, cores=usable_cores())
    raise UnknownTargetError(f"no kernels run on every {architecture}")


def target_names() -> tuple[str, ...]:
    """Names that `get_target` knows; "native" first where this machine can be described."""
    try:
        _detect()
    except DetectionError:
        return tuple(_specs())
    return (NATIVE, *_specs())


def target_aliases() -> dict[str, str]:
    """What people call targets, in small letters and digits, and the names of those."""
    own = {_plain(name): name for name in _specs()}
    return own | {alias: name for family in FAMILIES for alias, name in family.aliases.items()}


def family_of(spec: TargetSpec) -> Family:
    """The family of a machine; raises `UnknownTargetError` if no family has its architecture."""
    for family in FAMILIES:
        if spec.architecture in family.architectures:
            return family
    raise UnknownTargetError(f"no family has the architecture {spec.architecture!r}")


def backend_of(spec: TargetSpec) -> Backend:
    """What makes kernels for a machine; imports TVM. Raises as `family_of` does."""
    return _backend(family_of(spec).backend)


def backends() -> tuple[Backend, ...]:
    """Those of all families; imports TVM."""
    return tuple(_backend(family.backend) for family in FAMILIES)


@cache
def _backend(module: str) -> Backend:
    backend: Backend = import_module(module).BACKEND
    return backend


def _plain(name: str) -> str:
    """`Raspberry Pi 4` -> `raspberrypi4`, as aliases are written."""
    return re.sub(r"[\s_-]+", "", name).lower()


def _specs() -> dict[str, TargetSpec]:
    return {spec.name: spec for family in FAMILIES for spec in family.specs}


def _detect() -> TargetSpec:
    for family in FAMILIES:
        found = family.detect()
        if found is not None:
            return found
    raise DetectionError("this machine is of no family that kernels are made for")
