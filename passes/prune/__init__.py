"""Structured pruning: what belongs together, what matters, how much of it goes, what remains."""
