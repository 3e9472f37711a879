"""Calibration: samples from wherever they lie, run through the float graph and observed."""

from tinsmith.compiler.calibration.choice import CalibrationData, RandomSource, open_calibration
from tinsmith.compiler.calibration.folds import Folds, folds
from tinsmith.compiler.calibration.labels import read_labels
from tinsmith.compiler.calibration.observe import (
    Observation,
    ObservedModule,
    calibrate,
    observe_tensors,
)
from tinsmith.compiler.calibration.preprocessing import Preprocessing
from tinsmith.compiler.calibration.source import CalibrationSource

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
