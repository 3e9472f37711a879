"""Weights that are zero: unstructured, by magnitude, or N of every M."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm

from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.graph.tensors import constant_array
from tinsmith.passes.prune.recovery.replace_operands import replace_operands

# Weights `[K, OC]` to a mask of those that stay.
Mask = Callable[[np.ndarray], np.ndarray]


def below(threshold: float) -> Mask:
    """Weights of a smaller magnitude go."""
    return lambda weights: np.abs(weights) >= threshold


def smallest(ratio: float) -> Mask:
    """The share `ratio` of each layer's weights of the smallest magnitude goes.

    Source: Han et al. 2015, "Learning both Weights and Connections" (arXiv:1506.02626).
    Raises ValueError for a ratio outside 0..1.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"a ratio of weights lies in 0..1, not {ratio}")

    def mask(weights: np.ndarray) -> np.ndarray:
        order = np.argsort(np.abs(weights), axis=None, kind="stable")
        stays = np.ones(weights.size, bool)
        stays[order[: round(ratio * weights.size)]] = False
        return stays.reshape(weights.shape)

    return mask


def largest_of(n: int, m: int) -> Mask:
    """Of every `m` inputs of an output channel in a row, the `n` largest stay (2:4).

    Inputs that are left over at the end all stay. Source: Mishra et al. 2021, "Accelerating
    Sparse Deep Neural Networks", section 3 (arXiv:2104.08378). Raises ValueError unless
    0 < n < m.
    """
    if not 0 < n < m:
        raise ValueError(f"{n} of {m} weights cannot stay")

    def mask(weights: np.ndarray) -> np.ndarray:
        whole = len(weights) // m * m
        blocks = np.abs(weights[:whole]).reshape(-1, m, weights.shape[1])
        ranks = np.argsort(np.argsort(-blocks, axis=1, kind="stable"), axis=1)
        stays = np.ones(weights.shape, bool)
        stays[:whole] = (ranks < n).reshape(whole, -1)
        return stays

    return mask


@tvm.transform.module_pass(opt_level=0, name="SparsifyWeights")
class SparsifyWeights:
    """Set weights of convolutions and matrix products to zero.

    Before::

        y = conv2d(x, const w: (16, 8, 3, 3))

    After, with m = mask(w as [72, 16])::

        y = conv2d(x, const w * m: (16, 8, 3, 3))

    `mask` sees the weights of a layer as `[K, OC]`; the inputs K have the channels innermost, as
    the kernels read them. Shapes stay, and so does the time: dense kernels multiply
    zeros like all else. What becomes smaller is the module once it is compressed. Left alone:
    products of fewer than `least` weights, whose zeros save nothing, and convolutions of one
    input channel (depthwise), which have few weights and need them all.
    """

    def __init__(self, mask: Mask, least: int = 2048) -> None:
        self.mask = mask
        self.least = least

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        values: dict[tuple[str, int], np.ndarray] = {}
        for node in Dataflow(module).nodes:
            call: Any = node.value
            if node.operator not in ("relax.nn.conv2d", "relax.matmul"):
                continue
            weights = constant_array(call.args[1])
            if weights is None or weights.ndim < 2 or weights.size < self.least:
                continue
            axes = _inputs_then_outputs(call, weights)
            if weights.shape[axes[-2]] > 1:
                values[node.name, 1] = self._masked(weights, axes)
        return replace_operands(module, values)

    def _masked(self, weights: np.ndarray, axes: list[int]) -> np.ndarray:
        ordered = weights.transpose(axes)
        stays = self.mask(ordered.reshape(-1, ordered.shape[-1])).reshape(ordered.shape)
        return np.ascontiguousarray(np.where(stays, ordered, 0).transpose(np.argsort(axes)))


def _inputs_then_outputs(call: Any, weights: np.ndarray) -> list[int]:
    """The order of axes in which the output channels are last, the inputs before them."""
    layout = str(getattr(call.attrs, "kernel_layout", ""))
    return [layout.index(letter) for letter in "HWIO"] if layout else [*range(weights.ndim)]


def zeros_by_layer(module: tvm.IRModule) -> dict[str, tuple[int, int]]:
    """For each convolution and matrix product with constant weights: (all weights, zeros)."""
    found: dict[str, tuple[int, int]] = {}
    for node in Dataflow(module).nodes:
        call: Any = node.value
        if node.operator in ("relax.nn.conv2d", "relax.matmul"):
            weights = constant_array(call.args[1])
            if weights is not None:
                found[node.name] = weights.size, int((weights == 0).sum())
    return found
