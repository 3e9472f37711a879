"""Weights rounded so that the results change least, given the data they multiply.

Numpy only. Source: Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization
for Generative Pre-trained Transformers", equations 2 and 3 and algorithm 1
(arXiv:2210.17323), after Hassibi and Stork 1993, "Optimal Brain Surgeon".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tinsmith.passes.graph.windows import Windows
from tinsmith.passes.quantize.numbers import IntegerRange

# Inputs whose errors are carried to the far ones by one matrix product, as in the paper.
_BLOCK = 128
# Windows that are multiplied together.
_ROWS = 1024


class GramObserver:
    """The sum of x x^T over all windows x of an operand, for `adaptively_rounded`.

    For a matrix product the windows are the rows of the operand `[..., K]`. For a
    convolution `kernel` is (KH, KW) and the operand is `[N, H, W, C]`; a window has
    K = KH * KW * C values, in the order of HWIO weights. `padding` is (top, left,
    bottom, right). At most `windows` of each sample are taken, evenly spread: the sum
    needs far fewer than there are.
    """

    def __init__(
        self,
        kernel: Sequence[int] = (),
        strides: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0, 0, 0),
        dilation: Sequence[int] = (1, 1),
        windows: int = 512,
    ) -> None:
        self._convolution = (
            Windows(tuple(kernel), tuple(strides), tuple(padding), tuple(dilation))
            if kernel
            else None
        )
        self._windows = windows
        self._gram: np.ndarray | None = None
        self._pending: list[np.ndarray] = []

    @property
    def gram(self) -> np.ndarray:
        """`[K, K]` float64. Raises ValueError if nothing was observed."""
        self._multiply()
        if self._gram is None:
            raise ValueError("no sample was observed")
        return self._gram

    def update(self, array: np.ndarray) -> None:
        """Take an operand into account."""
        # A copy: whoever runs the model may fill the array again.
        self._pending.append(np.array(self._rows(np.asarray(array, np.float32))))
        if sum(map(len, self._pending)) >= _ROWS:
            self._multiply()

    def _multiply(self) -> None:
        """Add the products of the windows that wait: of many at once, adding K * K costs less."""
        if not self._pending:
            return
        rows = np.concatenate(self._pending)
        self._pending = []
        # A sum over so few windows is exact enough in float32, and twice as fast.
        gram = (rows.T @ rows).astype(np.float64)
        if self._gram is None:
            self._gram = gram
        else:
            self._gram += gram

    def _rows(self, array: np.ndarray) -> np.ndarray:
        if self._convolution is None:
            rows = array.reshape(-1, array.shape[-1])
            return rows[:: max(1, len(rows) // self._windows)]
        every = self._convolution.places(array.shape)
        return self._convolution.at(array, every[:: max(1, len(every) // self._windows)])


def adaptively_rounded(
    weights: np.ndarray,
    scales: np.ndarray,
    codes: IntegerRange,
    gram: np.ndarray,
    damping: float = 0.01,
) -> np.ndarray:
    """Codes (dtype of `codes`) that keep x @ weights, for the x whose `gram` is given.

    `weights` is `[..., OC]` with K values for each output channel, `scales` `[OC]` or `[]`,
    `gram` `[K, K]` (`GramObserver`). Values are rounded one input after the other, the one
    with the largest gram first; the error of each is made up for by those that are
    still to be rounded, by least squares. `damping` times the mean of the gram's diagonal is
    added to it. Inputs that are always zero keep the nearest code.

    Raises ValueError if the shapes do not fit.
    """
    outputs = weights.shape[-1]
    steps = np.asarray(scales, np.float64)

    def nearest(row: int, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rounded = np.clip(np.rint(values / steps), codes.low, codes.high)
        return rounded, rounded * steps

    found = carried_rounding(weights.reshape(-1, outputs), gram, nearest, damping)
    return found.reshape(weights.shape).astype(codes.dtype)


# For a row (input) and its values [OC]: the codes to store, and the values they stand for.
Rounding = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]


def carried_rounding(
    weights: np.ndarray, gram: np.ndarray, nearest: Rounding, damping: float = 0.01
) -> np.ndarray:
    """Codes of `weights` `[K, OC]` by `nearest`, each input's errors carried to later inputs.

    The procedure of `adaptively_rounded` for any set of levels. The result has the
    dtype float64 and holds whatever codes `nearest` answers.

    Raises ValueError if the shapes do not fit.
    """
    flat = weights.astype(np.float64)
    inputs, outputs = flat.shape
    if gram.shape != (inputs, inputs):
        raise ValueError(f"a gram of {gram.shape} does not fit weights of {inputs} inputs")
    order = np.argsort(-np.diag(gram), kind="stable")
    hessian = gram[np.ix_(order, order)].astype(np.float64)
    diagonal = np.diag(hessian)
    if not diagonal.max() > 0:
        return np.stack([nearest(row, flat[row])[0] for row in range(inputs)])
    hessian[np.diag_indices(inputs)] += damping * diagonal.mean()
    # Row i of the upper Cholesky factor of the inverse holds how a unit of error of input i
    # is spread over the inputs after it.
    spread = np.linalg.cholesky(positive_definite_inverse(hessian)).T
    left = flat[order]
    rounded = np.empty_like(left)
    for begin in range(0, inputs, _BLOCK):
        end = min(begin + _BLOCK, inputs)
        errors = np.empty((end - begin, outputs))
        for i in range(begin, end):
            rounded[i], values = nearest(int(order[i]), left[i])
            errors[i - begin] = (left[i] - values) / spread[i, i]
            left[i + 1 : end] -= spread[i, i + 1 : end, None] * errors[i - begin]
        left[end:] -= spread[begin:end, end:].T @ errors
    result = np.empty_like(rounded)
    result[order] = rounded
    return result


def positive_definite_inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a positive definite matrix, by its Cholesky factor: half of inv's work."""
    from scipy.linalg.lapack import dpotrf, dpotri  # late: whoever does not quantise needs none

    factor, failed = dpotrf(matrix, lower=1)
    inverse, unfinished = dpotri(factor, lower=1)
    if failed or unfinished:
        raise ValueError("the gram is not positive definite")
    # Only the lower triangle is computed.
    return np.asarray(np.tril(inverse) + np.tril(inverse, -1).T)
