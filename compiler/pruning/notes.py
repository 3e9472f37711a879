"""What a reader of a pruning's report has to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tinsmith.compiler.calibration import CalibrationSource, RandomSource
from tinsmith.compiler.calibration.folds import told_of_samples
from tinsmith.compiler.evaluate.classes import Verdict
from tinsmith.compiler.pruning.reconstruction import LayerError
from tinsmith.passes.prune import Groups
from tinsmith.passes.prune.allocation.ranking import Ranking

# Names that a note lists.
_LISTED = 3


def of_data(
    source: CalibrationSource | None, verdict: Verdict | None, folds: int = 0
) -> tuple[str, ...]:
    """On what was learned from, and how much the figure of the report rests on."""
    notes = []
    if source is None:
        notes.append("pruned without data: nothing was recovered; pass --calibration")
    elif isinstance(source, RandomSource):
        notes.append("warning: random data say nothing of what channels are worth")
    if verdict is not None:
        notes.append(told_of_samples(verdict.agreement, verdict.samples))
    if verdict is not None and folds:
        notes.append(
            f"judged in {folds} folds of {verdict.samples} samples: each by a pruning that has "
            "not seen it; the module has learned from all of them"
        )
    return tuple(notes)


def of_layers(errors: Sequence[LayerError]) -> tuple[str, ...]:
    """On layers that could learn little, or nothing."""
    if not errors:
        return ()
    notes = []
    starved = [f"{e.name}: {e.rows} for {e.columns}" for e in errors if e.rows < e.columns]
    if starved:
        notes.append(
            f"warning: {_listed(starved)}: fewer results than inputs to solve a layer for; pass "
            "more samples"
        )
    kept = [error.name for error in errors if error.ridge is None]
    if kept:
        notes.append(
            f"{len(kept)} of {len(errors)} layers keep their weights, because solving for new ones "
            f"did not help on samples that it had not seen: {_listed(kept)}"
        )
    return tuple(notes)


def of_groups(groups: Groups) -> tuple[str, ...]:
    """On groups that cannot lose anything."""
    frozen = [group for group in groups if group.frozen]
    if not frozen:
        return ()
    told = "1 group stays" if len(frozen) == 1 else f"{len(frozen)} groups stay"
    reasons = dict.fromkeys(group.frozen for group in frozen)
    return (f"{told} whole: {'; '.join([*reasons][:_LISTED])}",)


def why_whole(
    groups: Groups,
    rankings: Sequence[Ranking],
    widths: Mapping[int, int],
    keep: Sequence[str],
) -> dict[int, str]:
    """Why each group loses nothing, by index; of those that do not lose anything."""
    found = {group.index: group.frozen for group in groups if group.frozen}
    ranked = {ranking.group: ranking for ranking in rankings}
    for group in groups.prunable:
        ranking = ranked.get(group.index)
        if group.name in keep:
            found[group.index] = "is to be kept (--keep-group)"
        elif ranking is None:
            found[group.index] = "is a residual stream, which stays whole (--prune-residual)"
        elif widths.get(group.index, ranking.units) == ranking.units == ranking.whole:
            found[group.index] = _why_not_narrower(ranking)
    return found


def of_nothing(reasons: Mapping[int, str], groups: Groups) -> tuple[str, ...]:
    """A warning if no group lost anything."""
    if len(reasons) < len(groups):
        return ()
    told = dict.fromkeys(reasons[group.index] for group in groups.prunable)
    return (
        f"warning: nothing was pruned: {_listed([*told])}; ask for more, or for narrower steps "
        "with --prune-alignment",
    )


def _why_not_narrower(ranking: Ranking) -> str:
    if len(ranking.widths) == 1:
        return (
            f"has {ranking.units} units, and widths are multiples of {ranking.step} "
            "(--prune-alignment)"
        )
    told = f"its share is less than a step of {ranking.step} units"
    if ranking.weight < 1:
        told += f", as it is a residual stream of weight {ranking.weight:.2f}"
    return told


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
