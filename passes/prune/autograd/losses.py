"""What a student is taught by: the teacher's scores, its inner tensors, and labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_SMALL = 1e-12


def logits_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    alpha: float = 0.0,
    labels: Tensor | None = None,
) -> Tensor:
    """`alpha * L_hard + (1 - alpha) * T^2 * KL(teacher || student)`, the mean over rows.

    `student` and `teacher` are scores before their softmax, `[rows, classes]`; both are divided
    by the temperature T for the divergence. `labels` are class indices `[rows]`, L_hard their
    cross entropy; without them alpha counts as 0. Source: Hinton et al. 2015, "Distilling the
    Knowledge in a Neural Network", section 2 (arXiv:1503.02531).
    """
    soft = functional.kl_div(
        functional.log_softmax(student / temperature, -1),
        functional.log_softmax(teacher / temperature, -1),
        reduction="batchmean",
        log_target=True,
    )
    soft = soft * temperature**2
    if labels is None or not alpha:
        return soft
    return alpha * functional.cross_entropy(student, labels) + (1 - alpha) * soft


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared error over the teacher's mean square, for tensors of any one shape.

    Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3
    (arXiv:1412.6550), without a regressor: the teacher's channels that were kept are compared.
    """
    return functional.mse_loss(student, teacher) / (teacher.square().mean() + _SMALL)


def agreement(student: Tensor, teacher: Tensor) -> float:
    """The share of rows of `[rows, classes]` for which both have the same largest score."""
    return float((student.argmax(-1) == teacher.argmax(-1)).to(torch.float64).mean())
