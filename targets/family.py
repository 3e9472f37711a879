"""A family of machines: which there are, and where its kernels come from; without TVM."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from tinsmith.targets.spec import TargetSpec


@dataclass(frozen=True)
class Family:
    """Machines of one kind.

    `architectures` are those of its specs; `specs` are its machines with a name. `detect`
    describes the machine at hand, as "native", and raises `DetectionError` where it cannot;
    None says that it is of another family. `backend` is the module that has the family's
    `BACKEND`: it is imported when the first kernel is made. `refused` says what of these CPU
    features the operating system does not let this process use, or nothing. `aliases` are what
    people call machines of `specs`, in small letters and digits, without spaces. `portable` are
    what all machines of an architecture run: nothing is compiled for them but to be run at once.
    """

    kind: str
    architectures: frozenset[str]
    specs: tuple[TargetSpec, ...]
    detect: Callable[[], TargetSpec | None]
    backend: str
    refused: Callable[[Collection[str]], str] = lambda features: ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    portable: tuple[TargetSpec, ...] = ()
