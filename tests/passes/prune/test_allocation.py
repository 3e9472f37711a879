"""Widths by every rule: rounded, never empty, and what was asked for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tinsmith.passes.prune.allocation.by_sensitivity import by_sensitivity
from tinsmith.passes.prune.allocation.cost import Axis, CostModel, Term, proportional
from tinsmith.passes.prune.allocation.global_threshold import below_threshold
from tinsmith.passes.prune.allocation.parameters import parameter_model
from tinsmith.passes.prune.allocation.ranking import Ranking, rank
from tinsmith.passes.prune.allocation.under_budget import BudgetError, under_budget
from tinsmith.passes.prune.allocation.uniform import uniform
from tinsmith.passes.prune.groups import Group, Groups, Member
from tinsmith.passes.prune.schedule import progress_of_steps


def group(index: int, units: int, block: int = 1) -> Group:
    """A group of which constant 2 * index makes the units and 2 * index + 1 reads them."""
    indices = np.arange(units * block).reshape(units, block)
    members = (
        Member(2 * index, 0, indices, "produces", "relax.nn.conv2d", f"t{index}", "x"),
        Member(2 * index + 1, 1, indices, "consumes", "relax.nn.conv2d", f"u{index}", f"t{index}"),
    )
    return Group(index, f"t{index}", units, members, ())


def ranking(index: int, units: int, scale: float = 1.0, alignment: int = 16) -> Ranking:
    scores = scale * np.random.default_rng(index).random(units)
    return rank(group(index, units), scores, alignment)


def product(name: str, cost: float, *axes: tuple[int, int]) -> Term:
    """A layer whose work is the product of the widths of (group, units)."""
    return proportional(name, tuple(Axis(u, ((g, 1, u),)) for g, u in axes), cost)


def test_widths_are_aligned_and_never_empty() -> None:
    assert ranking(0, 64).widths == (64, 48, 32, 16)
    assert ranking(0, 40).widths == (40, 32, 16)
    assert ranking(0, 16).widths == (16,)
    assert ranking(0, 5).widths == (5,)


def test_units_of_several_channels_need_fewer_units_to_fill_a_vector() -> None:
    scores = np.arange(12.0)
    assert rank(group(0, 12, block=32), scores, 16).step == 1
    assert rank(group(0, 12, block=8), scores, 16).step == 2
    assert rank(group(0, 12, block=6), scores, 16).step == 8


def test_the_least_important_units_go() -> None:
    made = rank(group(0, 6), np.array([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]), 1)
    np.testing.assert_array_equal(made.kept(4), [0, 3, 4, 5])
    assert [made.loss(width) for width in (6, 5, 4)] == [0.0, 1.0, 3.0]
    cumulative = rank(group(0, 3), np.array([3.0, 1.0, 2.0]), 1, "cumulative")
    assert [cumulative.loss(width) for width in (3, 2, 1, 0)] == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("scores", [np.ones(4), np.array([1.0, np.nan, 2.0])])
def test_scores_have_to_fit(scores: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite scores"):
        rank(group(0, 3), scores, 1)


def test_uniform_takes_no_more_of_any_group_than_asked() -> None:
    rankings = [ranking(i, units) for i, units in enumerate((64, 128, 256, 512, 40, 16))]
    assert list(uniform(rankings, 0.3).values()) == [48, 96, 192, 368, 32, 16]
    assert list(uniform(rankings, 0.05).values()) == [64, 128, 256, 496, 40, 16]
    assert list(uniform(rankings, 0.99).values()) == [16] * 6


@pytest.mark.parametrize("tenths", range(1, 10))
def test_shares_that_are_widths_are_met_exactly(tenths: int) -> None:
    # Ten steps: in floating point 1 - tenths / 10 of them is a little more, or less, than a width.
    assert uniform([ranking(0, 160)], tenths / 10) == {0: 16 * (10 - tenths)}


def test_one_threshold_takes_from_groups_of_low_scores() -> None:
    rankings = [ranking(0, 128, 1.0, 8), ranking(1, 128, 0.1, 8)]
    widths = below_threshold(rankings, 0.5)
    assert widths[0] > 100 and widths[1] < 28
    assert abs(sum(widths.values()) - 128) <= 8


def test_a_threshold_leaves_no_group_empty() -> None:
    widths = below_threshold([ranking(0, 64), ranking(1, 64, 1e-6)], 0.5)
    assert widths[1] == 16


def test_sensitive_groups_lose_less() -> None:
    rankings = [ranking(i, 100, alignment=1) for i in range(3)]
    curves = {
        0: [(0.3, 0.9), (0.6, 0.6), (0.9, 0.0)],
        1: [(0.3, 0.99), (0.6, 0.98), (0.9, 0.7)],
        2: [(0.9, 1.0)],
    }
    widths = by_sensitivity(rankings, curves, 1.0, 0.5)
    assert widths[0] > widths[1] > widths[2]
    assert abs(sum(widths.values()) - 150) <= 3


def test_flat_curves_let_no_more_go_than_asked() -> None:
    rankings = [ranking(i, 100, alignment=1) for i in range(2)]
    widths = by_sensitivity(rankings, {0: [(0.9, 1.0)], 1: [(0.9, 1.0)]}, 1.0, 0.4)
    assert widths == {0: 60, 1: 60}


def test_a_group_without_a_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="no curve"):
        by_sensitivity([ranking(0, 8)], {}, 1.0, 0.5)


def test_cost_is_interpolated_between_measured_shares() -> None:
    term = Term("layer", (Axis(64, ((0, 1, 64),)),), ((0.25, 1.0), (0.5, 1.5), (1.0, 4.0)))
    assert [term.cost({0: width}) for width in (64, 48, 32, 16, 8)] == [4.0, 2.75, 1.5, 1.0, 1.0]


def test_an_axis_may_hold_several_groups_and_fixed_channels() -> None:
    axis = Axis(100, ((0, 2, 30), (1, 1, 20)))
    assert axis.share({}) == 1.0
    assert axis.share({0: 20, 1: 10}) == pytest.approx(0.7)


def test_parameters_are_those_of_the_shrunk_constants() -> None:
    generator = np.random.default_rng(0)
    shapes = [(8, 3, 3, 3), (16, 8, 3, 3), (16, 4, 1, 1), (10, 16), (10,)]
    constants = tuple(generator.random(shape) for shape in shapes)
    first, second = (np.arange(n)[:, None] for n in (8, 16))
    made = (
        Member(0, 0, first, "produces", "relax.nn.conv2d", "a", "x"),
        Member(1, 1, first, "consumes", "relax.nn.conv2d", "b", "a"),
    )
    read = (
        Member(1, 0, second, "produces", "relax.nn.conv2d", "b", "a"),
        Member(3, 1, second, "consumes", "relax.matmul", "c", "b"),
    )
    groups = Groups((Group(0, "a", 8, made, ()), Group(1, "b", 16, read, ())), constants)
    model = parameter_model(groups)
    assert model.total({}) == sum(c.size for c in constants)
    assert model.total({0: 6, 1: 9}) == 6 * 27 + 9 * 6 * 9 + 64 + 10 * 9 + 10


def chain(seed: int) -> tuple[list[Ranking], CostModel]:
    """Three groups in a row, of very different worth."""
    sizes = (32, 64, 48)
    rankings = [ranking(i, units, 10.0 ** ((i + seed) % 3)) for i, units in enumerate(sizes)]
    terms = (
        product("first", 10.0, (0, 32)),
        product("second", 60.0, (0, 32), (1, 64)),
        product("third", 40.0, (1, 64), (2, 48)),
        product("last", 5.0, (2, 48)),
    )
    return rankings, CostModel("operations", "FLOPs", terms, fixed=5.0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
def test_a_budget_is_kept_at_nearly_the_least_loss(seed: int, share: float) -> None:
    rankings, model = chain(seed)
    budget = share * model.total({})
    widths = under_budget(rankings, model, budget)
    assert model.total(widths) <= budget
    best = min(
        sum(r.loss(w) for r, w in zip(rankings, chosen, strict=True))
        for chosen in itertools.product(*(r.widths for r in rankings))
        if model.total(dict(enumerate(chosen))) <= budget
    )
    assert sum(r.loss(widths[r.group]) for r in rankings) <= 1.5 * best + 1e-9


def test_an_unreachable_budget_names_the_floor() -> None:
    rankings, model = chain(0)
    with pytest.raises(BudgetError, match="operations") as caught:
        under_budget(rankings, model, 1.0)
    assert caught.value.floor == model.total({0: 16, 1: 16, 2: 16})


def test_costs_that_rise_on_the_way_down_do_not_stop_the_choice() -> None:
    """A measured layer may be slower at a smaller width."""
    rankings = [ranking(0, 64)]
    term = Term("odd", (Axis(64, ((0, 1, 64),)),), ((0.25, 1.0), (0.5, 9.0), (0.75, 9.0), (1, 8.0)))
    assert under_budget(rankings, CostModel("latency", "s", (term,)), 5.0) == {0: 16}


def test_steps_of_a_schedule() -> None:
    assert progress_of_steps("linear", 1) == (1.0,)
    assert progress_of_steps("linear", 4) == (0.25, 0.5, 0.75, 1.0)
    np.testing.assert_allclose(progress_of_steps("polynomial", 2), [0.875, 1.0])
    with pytest.raises(ValueError, match="unknown schedule"):
        progress_of_steps("cosine", 2)
    with pytest.raises(ValueError, match="at least one step"):
        progress_of_steps("linear", 0)
