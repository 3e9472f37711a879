"""Fourier transforms of fixed length, as products with constant matrices.

A complex tensor has a last axis of two entries, a real one of one entry.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters.constants import (
    as_numpy,
    constant,
    dtype_of,
    reshape,
    static_shape,
    transpose,
)
from tinsmith.compiler.frontends.onnx.converters.selection import integers, take


def transform_matrix(
    samples: int, length: int, components: int, *, inverse: bool, onesided: bool
) -> np.ndarray:
    """The discrete Fourier transform as a matrix (samples * components, bins * 2), float64.

    `length` is that of the transform: inputs beyond it are dropped, missing ones are zero. A
    one-sided inverse takes the first half of the spectrum of a real signal, whose values are all
    that comes out: (samples * components, length).
    """
    used = min(samples, length)
    sign = 1.0 if inverse else -1.0
    bins = length if inverse or not onesided else length // 2 + 1
    angle = sign * 2.0 * np.pi * np.outer(np.arange(used), np.arange(bins)) / length
    real, imaginary = np.cos(angle), np.sin(angle)
    if inverse and onesided:
        # Each bin but the first, and the last of an even length, stands for its mirror image too.
        weight = np.full(used, 2.0)
        weight[0] = 1.0
        if length % 2 == 0 and used > length // 2:
            weight[length // 2] = 1.0
        matrix = np.zeros((samples, components, length))
        matrix[:used, 0] = weight[:, None] * real
        if components == 2:
            matrix[:used, 1] = -weight[:, None] * imaginary
        return matrix.reshape(samples * components, length) / length
    pairs = np.zeros((samples, components, bins, 2))
    pairs[:used, 0, :, 0] = real
    pairs[:used, 0, :, 1] = imaginary
    if components == 2:
        pairs[:used, 1, :, 0] = -imaginary
        pairs[:used, 1, :, 1] = real
    flat = pairs.reshape(samples * components, bins * 2)
    return flat / length if inverse else flat


class DFT(OnnxOpConverter):
    """Discrete Fourier transform along one axis."""

    @classmethod
    def _impl_v17(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        return _dft(bb, inputs, attr, attr.get("axis", 1))

    @classmethod
    def _impl_v20(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        axis = integers(inputs[2], "the axis")
        return _dft(bb, inputs, attr, -2 if axis is None else axis[0])


def _dft(bb: relax.BlockBuilder, inputs: Any, attr: Any, axis: int) -> relax.Expr:
    x = inputs[0]
    shape = static_shape(x)
    rank = len(shape)
    axis %= rank
    inverse, onesided = bool(attr.get("inverse", 0)), bool(attr.get("onesided", 0))
    samples, components = shape[axis], shape[-1]
    given = integers(inputs[1], "the length of the transform")
    default = 2 * (samples - 1) if inverse and onesided else samples
    length = default if given is None else given[0]
    matrix = transform_matrix(samples, length, components, inverse=inverse, onesided=onesided)
    order = [*(i for i in range(rank - 1) if i != axis), axis, rank - 1]
    outer = [shape[i] for i in order[:-2]]
    rows = reshape(bb, transpose(bb, x, order), [*outer, samples * components])
    product = bb.emit(relax.op.matmul(rows, constant(matrix.astype(dtype_of(x)))))
    parts = 1 if inverse and onesided else 2
    spectrum = reshape(bb, product, [*outer, matrix.shape[1] // parts, parts])
    return transpose(bb, spectrum, [order.index(i) for i in range(rank)])


class STFT(OnnxOpConverter):
    """Fourier transforms of overlapping frames of a signal (B, L, C): (B, frames, bins, 2)."""

    @classmethod
    def _impl_v17(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        signal, window = inputs[0], inputs[2]
        batch, samples, *rest = static_shape(signal)
        components = rest[0] if rest else 1
        step = integers(inputs[1], "the frame step")
        given = integers(inputs[3], "the frame length")
        if not step or step[0] < 1 or (given is None and window is None):
            raise ValueError("needs a positive frame step and a window or frame length")
        size = given[0] if given is not None else static_shape(window)[0]
        frames = 1 + (samples - size) // step[0]
        positions = step[0] * np.arange(frames)[:, None] + np.arange(size)
        framed = take(
            bb,
            reshape(bb, signal, (batch, samples, components)),
            positions.reshape(-1),
            1,
        )
        framed = reshape(bb, bb.emit(framed), (batch, frames, size, components))
        matrix = transform_matrix(
            size, size, components, inverse=False, onesided=bool(attr.get("onesided", 1))
        )
        weights = as_numpy(window)
        if weights is not None:
            matrix = np.repeat(weights.astype(np.float64), components)[:, None] * matrix
        elif window is not None:
            framed = bb.emit(relax.op.multiply(framed, reshape(bb, window, (size, 1))))
        rows = reshape(bb, framed, (batch, frames, size * components))
        product = bb.emit(relax.op.matmul(rows, constant(matrix.astype(dtype_of(signal)))))
        return relax.op.reshape(product, (batch, frames, matrix.shape[1] // 2, 2))
