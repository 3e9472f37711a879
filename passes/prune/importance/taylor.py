"""Importance by how much the loss changes without a unit, to first order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def taylor_of_weights(weights: Sequence[np.ndarray], gradients: Sequence[np.ndarray]) -> np.ndarray:
    """The squared first-order change of the loss when a unit's weights become 0, `[units]`.

    `weights` and `gradients` have an array `[units, values]` for each constant that computes
    the units: a weight, and the derivative of the loss by it. Source: Molchanov et al. 2019,
    "Importance Estimation for Neural Network Pruning", equation 8 (arXiv:1906.10771), with
    the sum inside the square: the unit goes as a whole.

    Raises ValueError if the shapes do not fit.
    """
    return np.square(_change(weights, gradients))


def taylor_of_activations(
    activations: Sequence[np.ndarray], gradients: Sequence[np.ndarray]
) -> np.ndarray:
    """The mean absolute first-order change of the loss when a unit is 0, float64 `[units]`.

    `activations` and `gradients` have an array `[units, values]` for each sample: a unit's
    activation at every place, and the derivative of the loss by it. Source: Molchanov et al.
    2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference",
    equation 8 (arXiv:1611.06440).

    Raises ValueError if the shapes do not fit.
    """
    changes = [np.abs(_change([a], [g])) for a, g in zip(activations, gradients, strict=True)]
    return np.mean(changes, axis=0)


def _change(values: Sequence[np.ndarray], gradients: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of value times derivative of each unit, float64 `[units]`."""
    terms = []
    for value, gradient in zip(values, gradients, strict=True):
        if value.shape != gradient.shape:
            raise ValueError(f"a gradient of {gradient.shape} for values of {value.shape}")
        terms.append(np.einsum("uv,uv->u", value, gradient, dtype=np.float64))
    return np.asarray(np.sum(terms, axis=0))
