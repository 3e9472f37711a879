"""The matrices of Winograd's minimal filtering F(m x m, 3 x 3), for even m.

    Y = A^T [ (G g G^T) * (B^T d B) ] A

gives the m x m outputs Y of a 3 x 3 filter g over an (m+2) x (m+2) patch d with (m+2)^2
multiplications instead of 9 m^2 (Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", 2015, arXiv:1509.09308, section 4). The matrices are those of the modified
Toom-Cook algorithm: polynomials are multiplied by their values at m+1 points and at
infinity (Barabasz, Anderson, Soodhalter and Gregg, "Error Analysis and Improving the
Accuracy of Winograd Convolution for Deep Neural Networks", 2018, arXiv:1803.10986, section 3).

The points are 0 and pairs +-a. Pairs share most of their arithmetic, which is why B^T and
A^T are given as products of two sparse matrices each. For F(4x4) the usual pairs 1 and 2 lose
a factor of five of accuracy against direct convolution; of all pairs of eighths up to two,
5/8 and 3/2 lose least (next to nothing), at the same number of operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

# The points other than 0 and infinity, by the size of the output tile.
_PAIRS = {2: (1.0,), 4: (0.625, 1.5)}
TILES = tuple(_PAIRS)


@dataclass(frozen=True)
class WinogradMatrices:
    """The transforms of one axis; `n` is `m + 2`.

    `input` is the `n x n` B^T as (second, first) factor, `output` the `m x n` A^T likewise;
    `weights` is the `n x 3` G, `weight_factors` the same as a product for those who transform
    at run time, and `recovery` the sparsest `3 x n` matrix with `recovery @ weights` the
    identity: it reads a filter back from its transform.
    """

    input: tuple[Matrix, Matrix]
    output: tuple[Matrix, Matrix]
    weights: Matrix
    weight_factors: tuple[Matrix, Matrix]
    recovery: Matrix


@cache
def winograd_matrices(tile: int) -> WinogradMatrices:
    """The matrices of F(tile x tile, 3 x 3); `tile` is one of `TILES`."""
    pairs = _PAIRS[tile]
    n = tile + 2
    last = n - 1
    shared, combined, sums = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n))
    powers, weights, recovery = np.zeros((tile, n)), np.zeros((n, 3)), np.zeros((3, n))
    # The first, middle and last tap, then the even part of each pair.
    parts, from_parts = np.zeros((3 + len(pairs), 3)), np.zeros((n, 3 + len(pairs)))
    # A row of B^T holds the coefficients of the product of (x - q) over all other points q.
    every = _product(pairs)
    shared[0, :last] = shared[last, 1:] = every
    combined[0, 0] = combined[last, last] = 1.0
    sums[0, 0] = sums[last, last] = 1.0
    powers[0, 0] = powers[tile - 1, last] = 1.0
    weights[0, 0], weights[last, 2] = 1.0 / every[0], 1.0
    parts[0, 0] = weights[0, 0]
    parts[1, 1] = parts[2, 2] = from_parts[0, 0] = from_parts[last, 2] = 1.0
    for k, a in enumerate(pairs):
        plus, minus = 2 * k + 1, 2 * k + 2
        both = [plus, minus]
        # x (x +- a) P(x) is x^2 P(x) +- a x P(x), where P belongs to the other pairs.
        others = _product(tuple(b for b in pairs if b != a))
        shared[plus, 2 : 2 + others.size] = shared[minus, 1 : 1 + others.size] = others
        combined[np.ix_(both, both)] = [[1.0, a], [1.0, -a]]
        sums[np.ix_(both, both)] = [[1.0, 1.0], [1.0, -1.0]]
        for power in range(tile):
            powers[power, minus if power % 2 else plus] = a**power
        scale = 2 * a * a * np.polynomial.polynomial.polyval(a, others)
        weights[both] = np.array([[1.0, a, a * a], [1.0, -a, a * a]]) / scale
        parts[3 + k] = [1.0 / scale, 0.0, a * a / scale]
        from_parts[both, 3 + k] = 1.0
        from_parts[both, 1] = [a / scale, -a / scale]
    recovery[0, 0], recovery[2, last] = every[0], 1.0
    # The middle tap is in the difference of a pair.
    recovery[1, 1:3] = np.array([1.0, -1.0]) / (weights[1, 1] - weights[2, 1])
    return WinogradMatrices(
        (combined, shared), (powers, sums), weights, (from_parts, parts), recovery
    )


def _product(pairs: tuple[float, ...]) -> Matrix:
    """The coefficients, constant term first, of the product of (x - a)(x + a)."""
    roots = [root for a in pairs for root in (a, -a)]
    return np.array(np.polynomial.polynomial.polyfromroots(roots), np.float64)
