"""How long each layer takes in several compiled graphs, measured in turns."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tinsmith.compiler.calibration import ObservedModule
from tinsmith.passes.graph.fused_groups import KernelCall
from tinsmith.passes.quantize.bias_correction import PRODUCT_SUFFIX

# Seconds that are spent on measuring, if that is enough for the fewest rounds.
_SECONDS = 1.5
_ROUNDS = (3, 60)
# Other load only ever adds time: the lower quartile of the rounds is steadier than the median.
_QUANTILE = 0.25
# Runs that differ by more than this share are those of a machine with other work.
_MOST_SPREAD = 0.3
# Before each turn, whichever ends first: the others have left weights of their own in the caches,
# and one run does not bring all of a large model's back.
_WARM_UP_SECONDS = 0.01
_WARM_UP_RUNS = 10
# Runs of a turn.
_BURST = 5


@dataclass(frozen=True)
class Timing:
    """Seconds of a whole run, and by layer of the kernels that belong to it.

    `spread` is by how much the upper quartile of the runs is above the lower one, as a share.
    """

    total: float
    layers: Mapping[str, float]
    spread: float = 0.0

    @property
    def is_steady(self) -> bool:
        """Whether other load has left the times good enough to decide by them."""
        return self.spread <= _MOST_SPREAD


def measure(
    modules: Sequence[ObservedModule],
    layers: Collection[str],
    tensors: Collection[str],
    inputs: Sequence[np.ndarray],
    rounds: int = _ROUNDS[1],
) -> tuple[Timing, ...]:
    """Time `modules` on `inputs`, a few runs of each in turn, so that all see the same load.

    There are at most so many `rounds`: a short model needs more of them to be sure.

    `layers` are names of operators, `tensors` those of all tensors of the float graph: a
    kernel of which neither is known, such as a conversion, belongs to the layer that
    reads it.
    """
    owners = [kernel_owners(module.calls, layers, tensors) for module in modules]
    totals: list[list[float]] = [[] for _ in modules]
    steps: list[list[list[float]]] = [[] for _ in modules]
    least = _ROUNDS[0]
    for module in modules:
        module.run(inputs)
    deadline = time.perf_counter() + _SECONDS
    for done in range(rounds):
        if done >= least and time.perf_counter() > deadline:
            break
        for module, total, profile in zip(modules, totals, steps, strict=True):
            _warm_up(module, inputs)
            total += [_seconds(module, inputs) for _ in range(_BURST)]
            profile.append(module.profile(inputs))
    return tuple(
        Timing(
            float(np.quantile(total, _QUANTILE)),
            _by_layer(np.quantile(profile, _QUANTILE, axis=0), own),
            float(np.quantile(total, 1 - _QUANTILE) / np.quantile(total, _QUANTILE) - 1),
        )
        for total, profile, own in zip(totals, steps, owners, strict=True)
    )


def _warm_up(module: ObservedModule, inputs: Sequence[np.ndarray]) -> None:
    spent = 0.0
    for _ in range(_WARM_UP_RUNS):
        spent += _seconds(module, inputs)
        if spent > _WARM_UP_SECONDS:
            break


def _seconds(module: ObservedModule, inputs: Sequence[np.ndarray]) -> float:
    begin = time.perf_counter()
    module.run(inputs)
    return time.perf_counter() - begin


def kernel_owners(
    calls: Sequence[KernelCall], layers: Collection[str], tensors: Collection[str]
) -> tuple[str | None, ...]:
    """The layer to which each kernel call belongs; None for those between layers.

    It is the layer that the kernel computes, or else, of a kernel with no tensor of the float
    graph (a conversion, a padding that lowering has added), the layer of all its readers.
    """
    known = frozenset(tensors)
    wanted = {name: name for name in layers}
    wanted |= {name + PRODUCT_SUFFIX: name for name in layers}
    owners: list[str | None] = [None] * len(calls)
    for index in reversed(range(len(calls))):
        call = calls[index]
        own = [wanted[name] for name in call.members if name in wanted]
        if own:
            owners[index] = own[0]
        elif call.readers and known.isdisjoint(call.members):
            readers = {owners[reader] for reader in call.readers}
            owners[index] = readers.pop() if len(readers) == 1 else None
    return tuple(owners)


def _by_layer(seconds: np.ndarray, owners: Sequence[str | None]) -> dict[str, float]:
    times: dict[str, float] = {}
    # The VM form sees the whole model as one step.
    if len(seconds) == len(owners):
        for owner, spent in zip(owners, seconds, strict=True):
            if owner is not None:
                times[owner] = times.get(owner, 0.0) + float(spent)
    return times
