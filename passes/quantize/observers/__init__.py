"""Observers: which range of a tensor's values to quantise. Need numpy, not TVM."""

from passes.quantize.observers.base import ObservationError, Observer, ObserverFactory
from passes.quantize.observers.choice import OBSERVERS, observer_factory
from passes.quantize.observers.entropy import EntropyObserver
from passes.quantize.observers.extremes import (
    ChannelMinMaxObserver,
    MinMaxObserver,
    MovingAverageObserver,
)
from passes.quantize.observers.histogram import GrowingHistogram
from passes.quantize.observers.mean_squared_error import MSEObserver
from passes.quantize.observers.percentile import PercentileObserver

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
