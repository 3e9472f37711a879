"""Few samples judge in folds: each by a pruning that has not seen it, and all of them teach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tinsmith.compiler.calibration import open_calibration
from tinsmith.compiler.calibration.folds import cross_folds, interval
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.evaluate.classes import Evaluation, Verdict, pooled
from tinsmith.compiler.pruning import pruner as pruner_module
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.compiler.pruning.judge import Judge
from tinsmith.compiler.pruning.narrowing import Narrowed, State
from tinsmith.compiler.pruning.pruner import Pruner
from tinsmith.compiler.pruning.report import PruneReport, StepReport
from tinsmith.compiler.pruning.samples import open_samples
from tinsmith.compiler.workshop import workshop
from tinsmith.targets.registry import get_target

SIGNATURE = {"x": ((1, 2), "float32")}


def numbered(count: int) -> np.ndarray:
    """Samples that tell their number."""
    return np.stack([np.full(2, index, np.float32) for index in range(count)])


def numbers(source) -> list[int]:
    return [int(sample["x"].flat[0]) for sample in source]


@pytest.mark.parametrize("count", [16, 21, 100])
def test_folds_are_disjoint_and_complete(count: int) -> None:
    folds = cross_folds(open_calibration(numbered(count), SIGNATURE))
    judged = [number for fold in folds for number in numbers(fold.judge)]
    assert sorted(judged) == list(range(count))
    for fold in folds:
        learned, unseen = numbers(fold.learn), numbers(fold.judge)
        assert sorted(learned + unseen) == list(range(count))
        assert abs(len(unseen) - count / 4) < 1


@pytest.mark.parametrize(
    ("count", "options", "folds"),
    [
        (40, {}, 4),
        (255, {}, 4),
        (256, {}, 0),
        (12, {}, 0),
        (40, {"cross_fit": False}, 0),
        (40, {"evaluation": numbered(20)}, 0),
        (40, {"samples": 20}, 0),
        (40, {"recovery": "distill"}, 0),
        (40, {"allocation": "sensitivity"}, 0),
        (40, {"ratio": None, "latency": 0.5}, 0),
        (40, {"ratio": None, "flops": 0.5}, 4),
    ],
)
def test_few_samples_without_others_judge_in_folds(
    count: int, options: dict[str, Any], folds: int
) -> None:
    config = PruneConfig(**{"ratio": 0.5, "calibration": numbered(count), **options})
    found = open_samples(config, SIGNATURE, {}, 0)
    assert len(found.folds) == folds
    if folds:
        assert found.learn is not None and len(numbers(found.learn)) == count
        assert found.held_out is None


def test_a_fold_is_judged_by_its_own_classes_and_labels() -> None:
    source = open_calibration(numbered(20), SIGNATURE)
    judge = Judge(
        Evaluation(source, np.arange(20) % 7, True),
        workshop(CompileConfig(threads=1), get_target("native")),
    )
    judge._classes = np.arange(20) % 5
    for fold in cross_folds(source):
        part = judge.on(fold.judge)
        unseen = np.array(numbers(fold.judge))
        assert part._classes is not None and part.evaluation is not None
        np.testing.assert_array_equal(part._classes, unseen % 5)
        np.testing.assert_array_equal(part.evaluation.labels, unseen % 7)


def test_verdicts_are_pooled_by_their_samples() -> None:
    found = pooled([Verdict(10, 0.5, 0.1, 0.2), Verdict(30, 0.9, 0.5, 0.6)])
    assert found is not None and found.samples == 40
    assert (found.agreement, found.top1, found.float_top1) == pytest.approx((0.8, 0.4, 0.5))
    assert pooled([None, None]) is None and pooled([]) is None


@dataclass
class Fake:
    """A narrowing that notes what it learned from, and agrees on a share by the fold."""

    learned: list[list[int]] = field(default_factory=list)
    judged: list[list[int]] = field(default_factory=list)

    def __call__(self, config, spec, whole: State, source, *rest: Any) -> Fake:
        self.whole = whole
        self.learned.append(numbers(source))
        return self

    def narrowed(self, judge=None) -> Narrowed:
        verdict = None
        if judge is not None:
            self.judged.append(numbers(judge.evaluation.source))
            verdict = Verdict(len(self.judged[-1]), len(self.judged) / 10)
        step = StepReport(1.0, 1.0, 1.0)
        return Narrowed(self.whole, (step,), ((None, verdict),), (), {}, ())


@pytest.fixture
def pruned(monkeypatch: pytest.MonkeyPatch) -> tuple[Fake, PruneReport]:
    """What 22 samples give, where the narrowing itself is a fake."""
    from test_held_out import narrow_model

    from tinsmith.compiler.frontends.onnx.model import import_onnx

    fake = Fake()
    monkeypatch.setattr(pruner_module, "Narrowing", fake)
    monkeypatch.setattr(Judge, "set_reference", _reference)
    imported = import_onnx(narrow_model())
    data = np.stack([np.full((3, 6, 6), index, np.float32) for index in range(22)])
    pruner = Pruner(
        PruneConfig(ratio=0.5, calibration=data),
        get_target("cortex-a76"),
        imported.signature,
        imported.domains,
        workshop(CompileConfig(threads=1), get_target("cortex-a76")),
    )
    pruner(imported.module)
    assert pruner.report is not None
    return fake, pruner.report


def _reference(judge: Judge, whole: object) -> Verdict:
    judge._classes = np.zeros(22, np.int64)
    return Verdict(22, 1.0)


def numbers_of(samples: list[list[int]]) -> list[int]:
    return sorted(number for part in samples for number in part)


def test_nothing_is_learned_from_the_fold_that_judges(pruned: tuple[Fake, PruneReport]) -> None:
    fake, _ = pruned
    assert numbers_of(fake.judged) == list(range(22))
    *folds, last = fake.learned
    for learned, judged in zip(folds, fake.judged, strict=True):
        assert sorted(learned + judged) == list(range(22))
    assert last == list(range(22))


def test_the_figure_is_of_all_folds(pruned: tuple[Fake, PruneReport]) -> None:
    fake, report = pruned
    agreed = sum(len(judged) * (fold + 1) / 10 for fold, judged in enumerate(fake.judged))
    assert report.agreement == pytest.approx(agreed / 22)
    assert report.steps[0].agreement == report.agreement
    assert (report.evaluated_samples, report.evaluated_folds) == (22, 4)
    assert report.interval == pytest.approx(interval(agreed / 22, 22))
    assert "of 22, judged in 4 folds" in report.summary()
    assert any(note.startswith("judged in 4 folds of 22 samples") for note in report.notes)
    assert PruneReport.from_dict(report.to_dict()) == report
