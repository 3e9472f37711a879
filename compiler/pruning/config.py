"""The options of pruning: frozen data that checks itself, without TVM."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf
from typing import Any

from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.sample_options import SampleOptions

AUTO = "auto"
# Those that look at data, and those that look at weights alone.
DATA_CRITERIA = ("reconstruction", "activation", "apoz", "taylor")
CRITERIA = (*DATA_CRITERIA, "l1", "l2", "geometric-median", "batch-norm", "random")
# What the goal may be a share of; latency is measured.
GOALS = ("ratio", "flops", "params", "latency")
ALLOCATIONS = ("uniform", "global", "sensitivity")
NORMALIZATIONS = ("none", "mean", "max", "sum", "lamp")
SCHEDULES = ("linear", "polynomial")
RECOVERIES = ("none", "batch-norm", "least-squares", "distill")
AUGMENTATIONS = ("flip", "crop", "mixup")
MAX_STEPS = 100


@dataclass(frozen=True)
class PruneConfig(SampleOptions):
    """How much of a model goes, which part of it, and what the rest learns.

    One goal for its channels, or a sparsity of its weights, or both.

    ratio: the share of the channels that goes, such as 0.3; how it is spread, `allocation` says:
        the same share of every group, never more ("uniform"), one threshold for all scores
        ("global"), or by curves of accuracy or agreement measured group by group
        ("sensitivity", needs data).
    flops, params, latency: the goal as a share of the unpruned model's, such as 0.5; widths are
        then chosen so that the least importance is lost. Latency is measured on this machine.
    sparsity: single weights of small magnitude become zero, after all else, and nothing is
        recovered. The module packs smaller (`tinsmith.pack`) and runs no faster; slower where
        Winograd's algorithm, which leaves no zeros, would have computed a convolution. A share of
        each layer's weights, such as 0.5; "2:4", two of every four inputs in a row stay;
        "below:0.01", by magnitude.
    criterion: how units are ranked: `reconstruction`, the error that is left when a layer is
        solved for anew, `activation`, `apoz`, `taylor`, the change of the loss to first order
        (these need data, the last one torch too), `l1`, `l2`, `geometric-median`,
        `batch-norm`, or `random`. "auto" takes `reconstruction` with data, `l2` without.
    normalization: how scores of different groups are made comparable: `none`, `mean`, `max`, `sum`
        or `lamp`. Errors of reconstruction are comparable as they are.
    alignment: widths are multiples of so many channels; None takes the lanes of the target's
        vectors, so that no channel is kept that costs as much as one more.
    residual: how much residual streams and linear bottlenecks shrink relative to other groups, from
        0 (not at all) to 1 (as much). "auto": the less, the narrower they are beside the layers
        between them, so that bottlenecks of inverted residuals stay whole.
    steps, schedule: pruning in one step or in several, with recovery after each; what goes is
        spread evenly ("linear") or over a falling cubic ("polynomial").
    recovery: what the rest learns from data without labels: `least-squares`, the weights of every
        layer solved for; `batch-norm`, statistics of batch normalisations measured anew
        (least-squares begins with that); `distill`, weights trained, after least squares and the
        last step, to give the scores of the unpruned model (needs torch); `none`. "auto" takes
        `least-squares` with data.
    distill_minutes, distill_epochs: how long is trained at most, whichever ends sooner.
    temperature: scores are divided by it when they are compared.
    distill_alpha: the share of the hard labels in the loss, 0: none are needed.
    hint_weight: how much the error of inner tensors counts in the loss, 0: not at all.
    augment: how pictures are changed at random in training: "flip", "crop", "mixup", see
        `tinsmith.compiler.pruning.augmentation`; few samples teach more with all three.
    ridge: how strongly least squares keep the weights at hand, relative to the inputs' variance;
        None chooses it for each layer, by samples that the layer was not solved for.
    places: results of a layer that each sample counts with in least squares, at random.
    cross_fit: fewer than 256 samples all judge, each a pruning of its own, one of four, that has
        not seen it, and the module learns from all. Otherwise every fourth is held out: it takes
        a fifth of the time. So it is always where recovery is by distillation, the allocation by
        sensitivity or the goal a latency.
    keep: names of groups, as the report tells them, that stay whole.
    """

    ratio: float | None = None
    flops: float | None = None
    params: float | None = None
    latency: float | None = None
    sparsity: float | str | None = None
    criterion: str = AUTO
    allocation: str = "uniform"
    normalization: str = "mean"
    alignment: int | None = None
    residual: float | str = AUTO
    steps: int = 1
    schedule: str = "polynomial"
    recovery: str = AUTO
    ridge: float | None = None
    places: int = 64
    cross_fit: bool = True
    distill_minutes: float = 10.0
    distill_epochs: int = 30
    temperature: float = 2.0
    distill_alpha: float = 0.0
    hint_weight: float = 5.0
    augment: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = [name for name in GOALS if getattr(self, name) is not None]
        if len(given) > 1 or not (given or self.sparsity is not None):
            raise ConfigError(
                "pruning needs exactly one goal: a ratio of channels that go, or a share of "
                "flops, params or latency that stays (none, if weights get a sparsity); "
                f"given are {', '.join(given) or 'none'}"
            )
        if given:
            _check_share(given[0], getattr(self, given[0]))
        else:
            self._check_channels_untouched()
        if self.sparsity is not None:
            parse_sparsity(self.sparsity)
        for name, choices in (
            ("criterion", (AUTO, *CRITERIA)),
            ("allocation", ALLOCATIONS),
            ("normalization", NORMALIZATIONS),
            ("schedule", SCHEDULES),
            ("recovery", (AUTO, *RECOVERIES)),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"pruning {name} {getattr(self, name)}: choose from {', '.join(choices)}"
                )
        for name in self.augment:
            if name not in AUGMENTATIONS:
                raise ConfigError(f"--augment {name}: choose from {', '.join(AUGMENTATIONS)}")
        if "mixup" in self.augment and self.distill_alpha:
            raise ConfigError("--augment mixup leaves no picture a class: set --distill-alpha to 0")
        for name, most in (
            ("alignment", 1024),
            ("steps", MAX_STEPS),
            ("places", 2**20),
            ("distill_epochs", 2**20),
        ):
            value = getattr(self, name)
            if value is None and name == "alignment":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise ConfigError(f"pruning {name} {value!r}: expected an integer from 1 to {most}")
        if not isinstance(self.cross_fit, bool):
            raise ConfigError(f"pruning cross_fit {self.cross_fit!r}: expected True or False")
        if self.ridge is not None and (not _is_number(self.ridge) or self.ridge <= 0):
            raise ConfigError(f"pruning ridge {self.ridge!r}: expected a number above 0, or None")
        if self.residual != AUTO and not (
            isinstance(self.residual, int | float)
            and _is_number(self.residual)
            and 0 <= self.residual <= 1
        ):
            raise ConfigError(
                f"--prune-residual {self.residual}: expected a number from 0 to 1, or auto"
            )
        for name in ("distill_minutes", "temperature"):
            value = getattr(self, name)
            if not _is_number(value) or value <= 0:
                raise ConfigError(f"pruning {name} {value!r}: expected a number above 0")
        if not _is_number(self.hint_weight) or self.hint_weight < 0:
            raise ConfigError(f"pruning hint_weight {self.hint_weight!r}: expected 0 or more")
        if not _is_number(self.distill_alpha) or not 0 <= self.distill_alpha <= 1:
            raise ConfigError(
                f"--distill-alpha {self.distill_alpha}: expected a number from 0 to 1"
            )
        self._check_data()

    @property
    def removes_channels(self) -> bool:
        """Whether there is a goal, and not a sparsity alone."""
        return any(getattr(self, name) is not None for name in GOALS)

    @property
    def learns(self) -> bool:
        """Whether anything of the result depends on the calibration data."""
        return self.removes_channels and (
            self.chosen_recovery != "none"
            or self.chosen_criterion in DATA_CRITERIA
            or self.allocation == "sensitivity"
        )

    @property
    def goal_name(self) -> str:
        """Which of `GOALS` is given, if channels are removed."""
        return next(name for name in GOALS if getattr(self, name) is not None)

    @property
    def goal(self) -> float:
        """The value of the goal."""
        return float(getattr(self, self.goal_name))

    @property
    def chosen_criterion(self) -> str:
        """The criterion that "auto" stands for."""
        if self.criterion != AUTO:
            return self.criterion
        return "reconstruction" if self.has_data else "l2"

    @property
    def chosen_recovery(self) -> str:
        """The recovery that "auto" stands for."""
        if self.recovery != AUTO:
            return self.recovery
        return "least-squares" if self.has_data else "none"

    def _check_channels_untouched(self) -> None:
        """Raise ConfigError for an option that only means something when channels go."""
        shared = {item.name for item in fields(SampleOptions)} | {"sparsity"}
        for item in fields(self):
            if item.name not in shared and getattr(self, item.name) != item.default:
                raise ConfigError(
                    f"pruning {item.name} {getattr(self, item.name)}: is for removing channels, "
                    "which a sparsity alone does not; add a goal such as --prune 0.3"
                )

    def _check_data(self) -> None:
        if self.calibration is not None:
            return
        needs = {
            f"criterion {self.criterion}": self.criterion in DATA_CRITERIA,
            f"recovery by {self.recovery}": self.recovery
            in ("batch-norm", "least-squares", "distill"),
            "allocation by sensitivity": self.allocation == "sensitivity"
            and self.evaluation is None,
        }
        for what, missing in needs.items():
            if missing:
                raise ConfigError(
                    f"pruning: {what} needs data: pass --calibration with a folder of pictures, "
                    "an .npz or .npy file"
                )


def parse_sparsity(value: float | str) -> tuple[str, tuple[Any, ...]]:
    """("ratio", (0.5,)), ("pattern", (2, 4)) or ("below", (0.01,)); raises ConfigError."""
    kind, _, rest = str(value).rpartition(":")
    try:
        if not kind and 0 < float(rest) < 1:
            return "ratio", (float(rest),)
        if kind == "below" and 0 < float(rest) < inf:
            return "below", (float(rest),)
        if kind not in ("", "below") and 0 < int(kind) < int(rest):
            return "pattern", (int(kind), int(rest))
    except ValueError:
        pass
    raise ConfigError(
        f"--sparsity {value}: expected a share between 0 and 1 such as 0.5, N:M with N less than "
        "M such as 2:4, or below:MAGNITUDE such as below:0.01"
    )


def _check_share(goal: str, value: Any) -> None:
    if not _is_number(value) or not 0 < value < 1:
        option = "--prune" if goal == "ratio" else f"--prune-{goal}"
        raise ConfigError(f"{option} {value}: expected a number between 0 and 1, both excluded")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
