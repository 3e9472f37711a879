"""Quantising a model while it is compiled: options, calibration, algorithms, report."""
