"""A code is an index into a table of levels that were fitted to the values."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from tinsmith.passes.quantize.formats.base import BlockFormat, Parameters, beyond
from tinsmith.passes.quantize.formats.granularity import FormatError

# K-means of more values learns nothing more, and takes longer.
_SAMPLE = 2**18
_ITERATIONS = 30
_DENSITY_BINS = 512


@dataclass(frozen=True)
class KMeansCodebook(BlockFormat):
    """Q(x) = argmin_k |x - c_k| with 2^b centres c that minimise the squared error (k-means).

    Source: Han et al. 2016, "Deep Compression", section 3 and equation 2
    (arXiv:1510.00149). The centres begin where the density of values to the power 1/3 has
    its quantiles, the asymptotic optimum of a scalar quantiser (Panter and Dite 1951), and
    are refined by Lloyd's iteration; of large blocks an evenly spaced selection of the
    sorted values is clustered. The result is deterministic.

    Parameter: `centres` float32, sorted, in the last axis. Codes: uint8. Bits: 1 to 8.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise FormatError(f"codebooks have 1 to 8 bits, not {self.bits}")

    def _fit_blocks(self, blocks: np.ndarray) -> dict[str, np.ndarray]:
        return {"centres": np.stack([_centres(block, 2**self.bits) for block in blocks])}

    def _encode_blocks(self, blocks: np.ndarray, parameters: Parameters) -> np.ndarray:
        codes = np.empty(blocks.shape, np.uint8)
        for values, centres, row in zip(blocks, parameters["centres"], codes, strict=True):
            wide = centres.astype(np.float64)
            row[:] = np.searchsorted((wide[1:] + wide[:-1]) / 2, values, side="left")
        return codes

    def _decode_blocks(self, codes: np.ndarray, parameters: Parameters) -> np.ndarray:
        return np.take_along_axis(parameters["centres"], codes.astype(np.intp), axis=1)

    def _bound_blocks(self, blocks: np.ndarray, parameters: Parameters) -> np.ndarray:
        centres = parameters["centres"].astype(np.float64)
        half_gap = np.diff(centres, axis=1).max(1, keepdims=True) / 2
        return half_gap + beyond(blocks, centres[:, :1], centres[:, -1:])


def _centres(values: np.ndarray, count: int) -> np.ndarray:
    """`count` sorted centres (float32) of a vector of values."""
    from scipy.cluster.vq import kmeans2  # late: whoever does not quantise needs none

    distinct = np.unique(values)
    if distinct.size <= count:
        # Every value is a centre; the rest repeats the last and is never chosen.
        return np.pad(distinct, (0, count - distinct.size), mode="edge")
    ordered = np.sort(values).astype(np.float64)
    if ordered.size > _SAMPLE:
        ordered = ordered[np.linspace(0, ordered.size - 1, _SAMPLE).astype(np.intp)]
    # Centred and scaled: k-means compares squares of distances.
    offset, extent = ordered.mean(), np.abs(ordered).max()
    points = (ordered - offset) / extent
    begin = _companded(points, count)
    with warnings.catch_warnings():
        # A centre that lost all its values stays where it was.
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        found, _ = kmeans2(points[:, None], begin[:, None], iter=_ITERATIONS, minit="matrix")
    return np.sort(found[:, 0] * extent + offset).astype(np.float32)


def _companded(points: np.ndarray, count: int) -> np.ndarray:
    """Where to begin: quantiles of the cube root of the density of `points`."""
    density, edges = np.histogram(points, bins=_DENSITY_BINS)
    cumulated = np.concatenate([[0.0], np.cumsum(np.cbrt(density))])
    shares = (np.arange(count) + 0.5) / count * cumulated[-1]
    return np.interp(shares, cumulated, edges)
