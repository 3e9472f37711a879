"""Losses against their formulas, and a small student that learns what its teacher computes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from graph_checks import execute
from prune_checks import Graph
from scipy.special import log_softmax, softmax
from tvm import relax

from tinsmith.passes.prune import find_groups, shrink
from tinsmith.passes.prune.recovery.distillation import Batch, DistillationOptions, find_hints
from tinsmith.passes.prune.recovery.positions import positions_left

torch = pytest.importorskip("torch")

from tinsmith.passes.prune.autograd.graph import TorchGraph  # noqa: E402
from tinsmith.passes.prune.autograd.losses import agreement, logits_loss, relative_error  # noqa: E402
from tinsmith.passes.prune.autograd.training import Distillation  # noqa: E402


def test_the_loss_is_hintons() -> None:
    random = np.random.default_rng(0)
    student, teacher = random.standard_normal((2, 7, 5))
    labels = random.integers(0, 5, 7)
    soft = softmax(teacher / 3, -1)
    kl = (soft * (log_softmax(teacher / 3, -1) - log_softmax(student / 3, -1))).sum(-1).mean()
    hard = -log_softmax(student, -1)[np.arange(7), labels].mean()
    tensors = torch.tensor(student), torch.tensor(teacher)
    assert float(logits_loss(*tensors, 3.0)) == pytest.approx(9 * kl)
    found = float(logits_loss(*tensors, 3.0, 0.25, torch.tensor(labels)))
    assert found == pytest.approx(0.25 * hard + 0.75 * 9 * kl)
    assert float(logits_loss(tensors[1], tensors[1], 3.0)) == pytest.approx(0, abs=1e-12)


def test_errors_are_relative_and_agreement_is_of_classes() -> None:
    one = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    other = torch.tensor([[3.0, 4.0], [1.0, 2.0]])
    assert float(relative_error(one, other)) == pytest.approx(9 / 30)
    assert agreement(one, other) == 0.5


def _pruned():
    """A network of two convolutions and a classifier, half of its channels removed."""
    graph = Graph(seed=3, x=(1, 3, 6, 6))
    a = graph.bind(relax.op.nn.relu(graph.conv(graph.inputs[0], 16, 3)))
    b = graph.bind(relax.op.nn.relu(graph.conv(a, 16, 3, name="second")))
    module = graph.module(graph.dense(graph.bind(relax.op.mean(b, [2, 3])), 4))
    groups = find_groups(module)
    keep = {group.index: np.arange(group.units // 2) for group in groups.prunable}
    return module, shrink(module, keep), positions_left(module, groups, keep)


def _batches(count: int, seed: int) -> list[Batch]:
    random = np.random.default_rng(seed)
    return [
        Batch((random.standard_normal((32, 3, 6, 6)).astype(np.float32),), keys=None)
        for _ in range(count)
    ]


@pytest.mark.parametrize("hint_weight", [0.0, 1.0])
def test_a_student_learns_what_its_teacher_computes(hint_weight: float) -> None:
    whole, pruned, positions = _pruned()
    hints = find_hints(pruned, positions)
    assert [hint.positions.tolist() for hint in hints if hint.positions is not None] == [
        [*range(8)],
        [*range(8)],
    ]
    training, held_out = _batches(6, 0), _batches(2, 1)
    told: list[float] = []

    def learnt():
        student = TorchGraph(pruned)
        options = DistillationOptions(
            minutes=1e6, epochs=15, learning_rate=1e-2, hint_weight=hint_weight
        )
        distillation = Distillation(TorchGraph(whole), student, options, hints)
        result = distillation.run(
            lambda epoch: training, held_out, lambda share, _: told.append(share)
        )
        return student.trained_module(), result

    module, result = learnt()
    assert result.loss < 0.5 * result.loss_before
    assert result.agreement >= result.agreement_before
    assert (result.epochs, result.steps, result.stopped_by) == (15, 90, "epochs")
    assert told == sorted(told) and told[0] >= 0 and told[-1] <= 1

    # The module has what the student has learnt, and the same seeds give the same weights.
    inputs = [held_out[0].inputs[0][:1]]
    wanted = execute(whole, inputs)[0]
    before, after = execute(pruned, inputs)[0], execute(module, inputs)[0]
    assert np.square(after - wanted).sum() < np.square(before - wanted).sum()
    np.testing.assert_array_equal(execute(learnt()[0], inputs)[0], after)


def test_the_weights_are_those_that_did_best() -> None:
    whole, pruned, _ = _pruned()
    student = TorchGraph(pruned)
    options = DistillationOptions(minutes=1e6, epochs=30, learning_rate=10.0, patience=2)
    held_out = _batches(1, 1)
    result = Distillation(TorchGraph(whole), student, options).run(
        lambda epoch: _batches(2, epoch), held_out
    )
    assert result.stopped_by == "no lower loss"
    assert result.epochs < 30
    assert result.agreement >= result.agreement_before


def test_time_is_a_limit_too() -> None:
    whole, pruned, _ = _pruned()

    def endless(epoch: int) -> Iterator[Batch]:
        while True:
            yield from _batches(1, epoch)

    options = DistillationOptions(minutes=0.5 / 60)
    result = Distillation(TorchGraph(whole), TorchGraph(pruned), options).run(
        endless, _batches(1, 1)
    )
    assert result.stopped_by == "time"
    assert result.seconds >= 0.5
