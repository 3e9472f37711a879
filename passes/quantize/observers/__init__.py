"""Observers: which range of a tensor's values to quantise. Need numpy, not TVM."""

from tinsmith.passes.quantize.observers.base import ObservationError, Observer, ObserverFactory
from tinsmith.passes.quantize.observers.choice import OBSERVERS, observer_factory
from tinsmith.passes.quantize.observers.entropy import EntropyObserver
from tinsmith.passes.quantize.observers.extremes import (
    ChannelMinMaxObserver,
    MinMaxObserver,
    MovingAverageObserver,
)
from tinsmith.passes.quantize.observers.histogram import GrowingHistogram
from tinsmith.passes.quantize.observers.mean_squared_error import MSEObserver
from tinsmith.passes.quantize.observers.percentile import PercentileObserver

__all__ = [
    "OBSERVERS",
    "ChannelMinMaxObserver",
    "EntropyObserver",
    "GrowingHistogram",
    "MSEObserver",
    "MinMaxObserver",
    "MovingAverageObserver",
    "ObservationError",
    "Observer",
    "ObserverFactory",
    "PercentileObserver",
    "observer_factory",
]
