"""Tuning: search the decisions of schedule templates, measure them, remember the best."""
