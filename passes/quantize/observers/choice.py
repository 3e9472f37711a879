"""Observers by name, as the command line and configurations choose them."""

from __future__ import annotations

from functools import partial

from tinsmith.passes.quantize.observers.base import ObserverFactory
from tinsmith.passes.quantize.observers.entropy import EntropyObserver
from tinsmith.passes.quantize.observers.extremes import MinMaxObserver, MovingAverageObserver
from tinsmith.passes.quantize.observers.mean_squared_error import MSEObserver
from tinsmith.passes.quantize.observers.percentile import PercentileObserver

OBSERVERS = ("minmax", "moving_average", "percentile", "entropy", "mse")


def observer_factory(name: str, *, bits: int = 8, percentile: float = 99.99) -> ObserverFactory:
    """Makes observers of that name, for codes of `bits` bits.

    Raises ValueError for a name that is not in OBSERVERS.
    """
    factories: dict[str, ObserverFactory] = {
        "minmax": MinMaxObserver,
        "moving_average": MovingAverageObserver,
        "percentile": partial(PercentileObserver, percentile),
        "entropy": partial(EntropyObserver, bits),
        "mse": partial(MSEObserver, bits),
    }
    if name not in factories:
        raise ValueError(f"observer {name!r} is not known; choose from {', '.join(OBSERVERS)}")
    factory = factories[name]
    factory()  # options that make no sense are refused here, not after the first sample
    return factory
