"""Quantisation: number formats and observers, placement, algorithms, integer lowering."""
