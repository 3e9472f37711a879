"""A step of the pipeline, and what comes out of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import tvm

from tinsmith.targets.template import KernelReport


@dataclass(frozen=True)
class Outcome:
    """The module after a step, how the step scheduled kernels, and what is to be told of it."""

    module: tvm.IRModule
    kernels: tuple[KernelReport, ...] = ()
    notes: tuple[str, ...] = ()


class Step(NamedTuple):
    """`apply` under the name that dumps, timings, manifests and errors have for it.

    What it needs and promises are the tuples `requires` and `ensures` of `apply`, if it has them:
    see `tinsmith.passes.graph.conditions`.
    """

    name: str
    # A pass, or a function that answers a module or an outcome.
    apply: tvm.transform.Pass | Callable[[tvm.IRModule], tvm.IRModule | Outcome]
