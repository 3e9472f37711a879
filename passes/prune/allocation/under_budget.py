"""The widths that lose least while a cost stays within its budget."""

from __future__ import annotations

from collections.abc import Sequence

from tinsmith.passes.prune.allocation.cost import CostModel
from tinsmith.passes.prune.allocation.ranking import Ranking

# So many steps of a group are weighed as one: what the first gains may be little.
_LOOK_AHEAD = 4


class BudgetError(ValueError):
    """The budget cannot be kept; `floor` is the least that can be reached."""

    def __init__(self, what: str, budget: float, floor: float) -> None:
        super().__init__(f"{what} of {budget:g} cannot be reached, {floor:g} is the least")
        self.floor = floor


def under_budget(rankings: Sequence[Ranking], model: CostModel, budget: float) -> dict[int, int]:
    """A width for each group such that the cost by `model` is at most `budget`.

    Greedy: the step that loses least for what it saves comes first, until the budget holds;
    then whatever still fits is given back, the most important first. With losses that grow and
    savings that shrink along each group that is the choice of a Lagrange multiplier, see
    Everett 1963, "Generalized Lagrange Multiplier Method". Scores have to be on one scale.

    Raises BudgetError if the narrowest widths cost more.
    """
    terms = model.depending()
    widths = {ranking.group: ranking.units for ranking in rankings}
    cost = model.total(widths)
    floor = model.total({ranking.group: ranking.widths[-1] for ranking in rankings})
    if floor > budget:
        raise BudgetError(model.what, budget, floor)

    def change(group: int, width: int) -> float:
        """What the cost changes by if one group gets another width."""
        other = {**widths, group: width}
        return sum(t.cost(other) - t.cost(widths) for t in terms.get(group, ()))

    while cost > budget:
        found: tuple[float, Ranking, int, float] | None = None
        for ranking in rankings:
            lost = ranking.loss(widths[ranking.group])
            position = ranking.widths.index(widths[ranking.group])
            for width in ranking.widths[position + 1 : position + 1 + _LOOK_AHEAD]:
                saved = -change(ranking.group, width)
                if saved > 0:
                    price = (ranking.loss(width) - lost) / saved
                    if found is None or price < found[0]:
                        found = price, ranking, width, saved
        if found is None:
            # Measured costs may rise on the way down: then the next step of all groups is taken.
            for ranking in rankings:
                position = ranking.widths.index(widths[ranking.group])
                widths[ranking.group] = ranking.widths[min(position + 1, len(ranking.widths) - 1)]
            cost = model.total(widths)
            continue
        _, ranking, width, _ = found
        widths[ranking.group] = width
        cost = model.total(widths)
    _give_back(rankings, model, budget, widths)
    return widths


def _give_back(
    rankings: Sequence[Ranking], model: CostModel, budget: float, widths: dict[int, int]
) -> None:
    """Widen groups, the one that gains most first, as long as the budget holds."""
    while True:
        found: tuple[float, int, int] | None = None
        for ranking in rankings:
            width = widths[ranking.group]
            position = ranking.widths.index(width)
            if position == 0:
                continue
            wider = ranking.widths[position - 1]
            gain = ranking.loss(width) - ranking.loss(wider)
            fits = model.total({**widths, ranking.group: wider}) <= budget
            if fits and (found is None or gain > found[0]):
                found = gain, ranking.group, wider
        if found is None:
            return
        widths[found[1]] = found[2]
