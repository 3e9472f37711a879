"""Tuning records shipped with the package: data only (see README.md)."""
