"""Calibration: samples from wherever they lie, run through the float graph and observed."""

from compiler.calibration.choice import CalibrationData, RandomSource, open_calibration
from compiler.calibration.folds import Folds, folds
from compiler.calibration.labels import read_labels
from compiler.calibration.observe import (
    Observation,
    ObservedModule,
    calibrate,
    observe_tensors,
)
from compiler.calibration.preprocessing import Preprocessing
from compiler.calibration.source import CalibrationSource

__all__ = [
    "CalibrationData",
    "CalibrationSource",
    "Folds",
    "Observation",
    "ObservedModule",
    "Preprocessing",
    "RandomSource",
    "calibrate",
    "folds",
    "observe_tensors",
    "open_calibration",
    "read_labels",
]
