"""Which algorithm computes a convolution: the direct one, or Winograd's with one of its tiles."""

from __future__ import annotations

from typing import Protocol

from tinsmith.targets.cpu.operators.convolution import ConvolutionWorkload
from tinsmith.targets.cpu.operators.winograd import WinogradWorkload, supports_winograd
from tinsmith.targets.cpu.winograd_plan import best_plan, direct_cycles
from tinsmith.targets.spec import TargetSpec

DIRECT = "direct"
# Height and width of the output tile by the name of the algorithm.
WINOGRAD_TILES = {"winograd2": 2, "winograd4": 4}
ALGORITHMS = (DIRECT, *WINOGRAD_TILES)
# To be raised when an algorithm becomes so much faster that earlier choices mean nothing.
ALGORITHMS_VERSION = 1
# By how much the estimate must be better than that of the direct algorithm.
_MARGIN = 1.25
# With fewer, the transforms have not enough products between them.
FEWEST_CHANNELS = 16


class AlgorithmLookup(Protocol):
    """Where the algorithms that earlier searches found best are looked up."""

    def find(self, workload: ConvolutionWorkload, spec: TargetSpec) -> str | None:
        """One of `ALGORITHMS`, or None if nothing is known; `workload` is the direct one's."""


class DirectOnly:
    """The lookup that leaves every convolution direct."""

    def find(self, workload: ConvolutionWorkload, spec: TargetSpec) -> str | None:
        return DIRECT


def winograd_tile(
    workload: ConvolutionWorkload, spec: TargetSpec, known: AlgorithmLookup | None = None
) -> int | None:
    """The tile of the Winograd algorithm that is to compute `workload`; None for the direct one.

    What `known` does not know is decided by a rule.
    """
    if not supports_winograd(workload):
        return None
    found = None if known is None else known.find(workload, spec)
    return WINOGRAD_TILES.get(found or default_algorithm(workload, spec))


def default_algorithm(w: ConvolutionWorkload, spec: TargetSpec) -> str:
    """The algorithm of least estimated time; Winograd's only where it wins clearly.

    Few channels leave the transforms without enough products between them. Off x86-64
    nothing was measured.
    """
    if spec.architecture != "x86_64" or min(w.in_channels, w.out_channels) < FEWEST_CHANNELS:
        return DIRECT
    estimates = {name: _winograd_cycles(w, tile, spec) for name, tile in WINOGRAD_TILES.items()}
    best = min(estimates, key=lambda name: estimates[name])
    return best if estimates[best] * _MARGIN < direct_cycles(w, spec) else DIRECT


def _winograd_cycles(w: ConvolutionWorkload, tile: int, spec: TargetSpec) -> float:
    workload = WinogradWorkload(w, tile)
    return best_plan(workload, spec).cycles(workload, spec)
