"""Which algorithm computes a convolution: the direct one, or Winograd's with one of its tiles."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from tinsmith.targets.algorithms import DIRECT, AlgorithmLookup, Algorithms
from tinsmith.targets.cpu.arithmetic import arithmetic_named
from tinsmith.targets.cpu.operators.convolution import ConvolutionWorkload
from tinsmith.targets.cpu.operators.winograd import WinogradWorkload, supports_winograd
from tinsmith.targets.cpu.schedules.half_panel import has_half_weights
from tinsmith.targets.cpu.winograd_plan import best_plan, direct_cycles
from tinsmith.targets.spec import TargetSpec

# Height and width of the output tile by the name of the algorithm.
WINOGRAD_TILES = {"winograd2": 2, "winograd4": 4}
# By how much the estimate must be better than that of the direct algorithm, which for weights of
# 16 bits is nearer to the truth.
_MARGIN, _MARGIN_OF_HALVES = 1.25, 1.15
# With fewer, the transforms have not enough products between them.
_FEWEST_CHANNELS = 16


class ConvolutionAlgorithms(Algorithms):
    """The direct convolution, and Winograd's with each of its tiles."""

    codes = {DIRECT: 0, **WINOGRAD_TILES}  # noqa: RUF012  (the base says it is a Mapping)
    version = 1

    def have_choice(self, workload: Any) -> bool:
        return min(workload.in_channels, workload.out_channels) >= _FEWEST_CHANNELS

    def by_rule(self, workload: Any, spec: TargetSpec) -> str:
        return default_algorithm(workload, spec)

    def described(self, workload: Any) -> str:
        w: ConvolutionWorkload = workload
        size = f"{w.out_height}x{w.out_width}"
        return f"{w.kernel_height}x{w.kernel_width} {w.in_channels}->{w.out_channels} on {size}"

    def computed_by(self, workload: Any) -> tuple[Hashable, str] | None:
        if isinstance(workload, WinogradWorkload):
            names = {tile: name for name, tile in WINOGRAD_TILES.items()}
            return workload.convolution, names[workload.tile]
        return (workload, DIRECT) if isinstance(workload, ConvolutionWorkload) else None


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

    Few channels leave the transforms without enough products between them. On machines whose
    estimates were not measured, it is the direct one.
    """
    if not spec.winograd or min(w.in_channels, w.out_channels) < _FEWEST_CHANNELS:
        return DIRECT
    estimates = {name: _winograd_cycles(w, tile, spec) for name, tile in WINOGRAD_TILES.items()}
    best = min(estimates, key=lambda name: estimates[name])
    margin = _MARGIN_OF_HALVES if has_half_weights(arithmetic_named(w.arithmetic)) else _MARGIN
    return best if estimates[best] * margin < direct_cycles(w, spec) else DIRECT


def _winograd_cycles(w: ConvolutionWorkload, tile: int, spec: TargetSpec) -> float:
    workload = WinogradWorkload(w, tile)
    return best_plan(workload, spec).cycles(workload, spec)
