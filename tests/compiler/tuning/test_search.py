"""The search: deterministic, exhaustive where it can be, and better than chance."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tinsmith.compiler.tuning import learner as learner_module
from tinsmith.compiler.tuning.cost_model import CostModel, Samples
from tinsmith.compiler.tuning.learner import Learner
from tinsmith.compiler.tuning.records import decisions_key
from tinsmith.compiler.tuning.search import Search

NUMBERS = {"pixels": 49, "channels": 512}
SPACE = tuple(
    {"rows": rows, "vectors": vectors, "outer": outer, "unroll": unroll}
    for rows, vectors, outer, unroll in itertools.product(
        range(1, 15), range(1, 9), (0, 1), (1, 2, 4, 8)
    )
)


def seconds(decisions: dict[str, int], noise: float = 0.0) -> float:
    """A made-up kernel: registers must be filled, but not overfilled, and tiles fit the pixels."""
    tile = decisions["rows"] * decisions["vectors"]
    overlap = math.ceil(49 / decisions["rows"]) * decisions["rows"] / 49
    loads = 1 + (decisions["rows"] + decisions["vectors"]) / tile
    spills = 1 + max(0, tile - 28) * 0.1
    order = 1.1 if decisions["outer"] else 1.0
    unroll = 1 + 0.05 * abs(math.log2(decisions["unroll"]) - 1)
    return overlap * loads * spills * order * unroll * (1 + noise)


@pytest.fixture(scope="module")
def learner() -> Iterator[Learner]:
    """One process for all."""
    with Learner() as learner:
        yield learner
        assert not learner.note


def best_after(strategy: str, seed: int, learner: Learner, trials: int = 64) -> float:
    generator = np.random.default_rng(seed)
    search = Search(SPACE, NUMBERS, seed, strategy)
    model = CostModel(learner, seed)
    default = seconds(SPACE[0])
    while len(search.tried) - 1 < trials:
        for decisions in search.propose(16, model):
            noisy = seconds(decisions, 0.01 * generator.standard_normal())
            search.tried[decisions_key(decisions)] = noisy / default
        tried = [d for d in SPACE if decisions_key(d) in search.tried]
        model.fit([Samples(NUMBERS, tried, [search.tried[decisions_key(d)] for d in tried])])
    return seconds(search.best[0])


def test_the_model_beats_chance_at_64_trials(learner: Learner) -> None:
    ratios = [
        best_after("model", seed, learner) / best_after("random", seed, learner)
        for seed in (0, 1, 2)
    ]
    assert float(np.exp(np.mean(np.log(ratios)))) < 0.99
    assert max(ratios) <= 1.01


def test_the_same_seed_proposes_the_same(learner: Learner) -> None:
    first, second, other = (Search(SPACE, NUMBERS, seed) for seed in (3, 3, 4))
    model = CostModel(learner)
    assert first.propose(16, model) == second.propose(16, model)
    assert first.propose(16, model) != other.propose(16, model)


def test_small_spaces_are_tried_as_a_whole_and_nothing_twice(learner: Learner) -> None:
    space = SPACE[:20]
    search = Search(space, NUMBERS)
    model = CostModel(learner)
    seen = []
    while proposed := search.propose(8, model):
        seen += proposed
        for decisions in proposed:
            search.tried[decisions_key(decisions)] = seconds(decisions)
    # The default, the first, is known from the beginning.
    assert sorted(map(decisions_key, seen)) == sorted(map(decisions_key, space[1:]))
    assert search.left == 0


def test_near_machines_are_where_it_begins(learner: Learner) -> None:
    starts = [SPACE[300], SPACE[17], {"rows": 999, "vectors": 1, "outer": 0, "unroll": 1}]
    proposed = Search(SPACE, NUMBERS, starts=starts).propose(8, CostModel(learner))
    assert proposed[:2] == starts[:2]
    assert starts[2] not in proposed


def test_failures_are_never_the_best() -> None:
    search = Search(SPACE, NUMBERS)
    search.tried[decisions_key(SPACE[5])] = math.inf
    assert search.best == (SPACE[0], 1.0)
    assert search.fastest(3) == []
    search.tried[decisions_key(SPACE[6])] = 0.5
    assert search.best == (SPACE[6], 0.5)


@pytest.mark.parametrize("count", [0, 5])
def test_a_model_of_few_samples_knows_nothing(learner: Learner, count: int) -> None:
    model = CostModel(learner)
    model.fit([Samples(NUMBERS, SPACE[:count], [1.0] * count)])
    assert model.predict(NUMBERS, SPACE[:4]) is None


def test_what_is_learnt_of_one_kernel_serves_another(learner: Learner) -> None:
    model = CostModel(learner)
    learnt = SPACE[::3]
    model.fit([Samples(NUMBERS, learnt, [seconds(d) for d in learnt])])
    expected = model.predict({"pixels": 49, "channels": 256}, SPACE)
    actual = np.array([seconds(d) for d in SPACE])
    assert expected is not None
    chosen = actual[np.argsort(expected)[:20]].mean()
    assert chosen < np.quantile(actual, 0.1)


def test_workloads_of_one_template_may_decide_different_things(learner: Learner) -> None:
    model = CostModel(learner)
    more = [{**decisions, "prefetch": 1} for decisions in SPACE[::5]]
    samples = [
        Samples(NUMBERS, chosen, [seconds(d) for d in chosen]) for chosen in (SPACE[::3], more)
    ]
    model.fit(samples)
    for space in (SPACE, more):
        expected = model.predict(NUMBERS, space)
        assert expected is not None and expected.shape == (len(space),)


def taught(learner: Learner) -> CostModel:
    model = CostModel(learner)
    model.fit([Samples(NUMBERS, SPACE[:16], [1.0] * 16)])
    return model


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("segfault", "died of SIGSEGV"),
        ("hang", "took longer than 2 s"),
        ("raise", "failed with RuntimeError: no trees today"),
        ("eat memory", "failed with .*MemoryError"),
    ],
)
def test_a_model_that_fails_costs_its_ranking_only(
    what: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("MISBEHAVE", what)
    monkeypatch.setattr(learner_module, "MODULE", "misbehaving_model")
    monkeypatch.setattr(learner_module, "LIMIT_SECONDS", 2)
    search, chance = Search(SPACE, NUMBERS), Search(SPACE, NUMBERS, strategy="random")
    with Learner() as learner:
        model = taught(learner)
        assert search.propose(16, model) == chance.propose(16, model)
        assert re.fullmatch(f".* at random: 1, because the cost model {told}", learner.note)
        # The next is asked anew.
        monkeypatch.setattr(learner_module, "MODULE", "tinsmith.compiler.tuning.boosting")
        assert model.predict(NUMBERS, SPACE[:4]) is not None


def test_a_model_that_fails_again_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_module, "MODULE", "no_such_module")
    with Learner() as learner:
        model = taught(learner)
        assert [model.predict(NUMBERS, SPACE[:4]) for _ in range(2)] == [None, None]
        monkeypatch.setattr(learner_module, "MODULE", "tinsmith.compiler.tuning.boosting")
        assert model.predict(NUMBERS, SPACE[:4]) is None
        assert "at random: 3" in learner.note and "no_such_module" in learner.note
