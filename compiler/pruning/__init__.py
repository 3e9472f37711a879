"""Pruning a model while it is compiled: options, measurement, recovery, report."""
