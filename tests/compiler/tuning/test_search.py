"""The search: deterministic, exhaustive where it can be, and better than chance."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from compiler.tuning.cost_model import CostModel, Samples
from compiler.tuning.records import decisions_key
from compiler.tuning.search import Search

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


def best_after(strategy: str, seed: int, trials: int = 64) -> float:
    generator = np.random.default_rng(seed)
    search = Search(SPACE, NUMBERS, seed, strategy)
    model = CostModel(seed)
    default = seconds(SPACE[0])
    while len(search.tried) - 1 < trials:
        for decisions in search.propose(16, model):
            noisy = seconds(decisions, 0.01 * generator.standard_normal())
            search.tried[decisions_key(decisions)] = noisy / default
        tried = [d for d in SPACE if decisions_key(d) in search.tried]
        model.fit([Samples(NUMBERS, tried, [search.tried[decisions_key(d)] for d in tried])])
    return seconds(search.best[0])


def test_the_model_beats_chance_at_64_trials() -> None:
    ratios = [best_after("model", seed) / best_after("random", seed) for seed in (0, 1, 2)]
    assert float(np.exp(np.mean(np.log(ratios)))) < 0.99
    assert max(ratios) <= 1.01


def test_the_same_seed_proposes_the_same() -> None:
    first, second, other = (Search(SPACE, NUMBERS, seed) for seed in (3, 3, 4))
    model = CostModel()
    assert first.propose(16, model) == second.propose(16, model)
    assert first.propose(16, model) != other.propose(16, model)


def test_small_spaces_are_tried_as_a_whole_and_nothing_twice() -> None:
    space = SPACE[:20]
    search = Search(space, NUMBERS)
    model = CostModel()
    seen = []
    while proposed := search.propose(8, model):
        seen += proposed
        for decisions in proposed:
            search.tried[decisions_key(decisions)] = seconds(decisions)
    # The default, the first, is known from the beginning.
    assert sorted(map(decisions_key, seen)) == sorted(map(decisions_key, space[1:]))
    assert search.left == 0


def test_near_machines_are_where_it_begins() -> None:
    starts = [SPACE[300], SPACE[17], {"rows": 999, "vectors": 1, "outer": 0, "unroll": 1}]
    proposed = Search(SPACE, NUMBERS, starts=starts).propose(8, CostModel())
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
def test_a_model_of_few_samples_knows_nothing(count: int) -> None:
    model = CostModel()
    model.fit([Samples(NUMBERS, SPACE[:count], [1.0] * count)])
    assert not model.ready
    assert not model.predict(NUMBERS, SPACE[:4]).any()


def test_what_is_learnt_of_one_kernel_serves_another() -> None:
    model = CostModel()
    learnt = SPACE[::3]
    model.fit([Samples(NUMBERS, learnt, [seconds(d) for d in learnt])])
    expected = model.predict({"pixels": 49, "channels": 256}, SPACE)
    actual = np.array([seconds(d) for d in SPACE])
    chosen = actual[np.argsort(expected)[:20]].mean()
    assert chosen < np.quantile(actual, 0.1)
