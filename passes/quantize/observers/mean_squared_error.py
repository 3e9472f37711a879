"""The clipping with the least squared error."""

from __future__ import annotations

import numpy as np

from tinsmith.passes.quantize import numbers
from tinsmith.passes.quantize.observers.histogram import DEFAULT_BINS
from tinsmith.passes.quantize.observers.percentile import HistogramObserver

_SHARES = np.linspace(0.02, 1.0, 50)
_REFINED = 12


class MSEObserver(HistogramObserver):
    """The range whose affine codes of `bits` bits reproduce the values with the least error.

    The error of a candidate is sum_bins count * (centre - dequantise(quantise(centre)))^2,
    rounding and clipping together, computed from the histogram with the very parameters
    that the range will get. Candidates are a grid of shares of the extremes: both ends
    shrink together first, then each by itself, then both grids once more around the best.
    The objective is that of OCTAV (Sakr et al. 2022, "Optimal Clipping and Magnitude-aware
    Differentiation for Improved Quantization-aware Training", equation 3,
    arXiv:2206.06501); the grid needs no assumption on the rounding noise.
    """

    def __init__(self, bits: int = 8, bins: int = DEFAULT_BINS) -> None:
        super().__init__(bins)
        self._codes = numbers.integer_range(bits, signed=False)

    def range(self) -> tuple[float, float]:
        histogram = self._observed()
        low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
        edges, counts = histogram.occupied()
        used = counts > 0
        centres = ((edges[:-1] + edges[1:]) / 2)[used]
        # The outermost bins reach beyond the values in them.
        centres = np.clip(centres, histogram.low, histogram.high)
        weights = counts[used].astype(np.float64)
        if not used.any() or low == high:
            return histogram.low, histogram.high

        def best(lows: np.ndarray, highs: np.ndarray) -> tuple[float, float]:
            errors = self._errors(centres, weights, lows, highs)
            # Of equal errors the widest range: candidates come in ascending order.
            index = len(errors) - 1 - int(np.argmin(errors[::-1]))
            return float(lows[index]), float(highs[index])

        def shares(end: float, limit: float) -> np.ndarray:
            """Candidates of one end around a value that was found, up to the extreme."""
            grid = np.linspace(0.9, 1.1, _REFINED) * end
            return grid[np.abs(grid) < abs(limit)] if end else grid[:0]

        low_end, high_end = best(low * _SHARES, high * _SHARES)
        for grid_low, grid_high in (
            (low * _SHARES, high * _SHARES),
            (np.append(shares(low_end, low), low_end), np.append(shares(high_end, high), high_end)),
        ):
            if low < 0:
                low_end, _ = best(grid_low, np.full_like(grid_low, high_end))
            if high > 0:
                _, high_end = best(np.full_like(grid_high, low_end), grid_high)
        return low_end, high_end

    def _errors(
        self, centres: np.ndarray, weights: np.ndarray, lows: np.ndarray, highs: np.ndarray
    ) -> np.ndarray:
        """The squared error of each candidate range, (candidates,)."""
        scale, zero_point = numbers.affine_parameters(lows, highs, self._codes)
        scale, zero_point = scale[:, None], zero_point[:, None]
        values = centres.astype(np.float32)[None]
        codes = numbers.quantize(values, scale, zero_point, self._codes)
        error = numbers.dequantize(codes, scale, zero_point).astype(np.float64) - centres
        return np.square(error) @ weights
