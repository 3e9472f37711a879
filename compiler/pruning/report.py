"""What pruning did to a model, group by group and step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line reads reports without TVM
    from tinsmith.passes.prune.recovery.distillation import DistillationResult


@dataclass(frozen=True)
class GroupReport:
    """Channels that go together: how many units there were and are.

    `name` is the tensor that the first producer computes. `importance_kept` is the share of
    the summed scores that is left, in the last step; None where nothing was scored. `reason`
    says why the group is whole, if none of it may go.
    """

    name: str
    before: int
    after: int
    importance_kept: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class SparseLayer:
    """The weights of a convolution or a matrix product, and how many of them are zero."""

    name: str
    weights: int
    zeros: int


@dataclass(frozen=True)
class StepReport:
    """One step: what it left, as shares of the unpruned model, and how that judges samples."""

    channels: float
    flops: float
    params: float
    shrunk_agreement: float | None = None
    shrunk_top1: float | None = None
    agreement: float | None = None
    top1: float | None = None
    layers_solved: int = 0


@dataclass(frozen=True)
class PruneReport:
    """The whole model.

    `flops` and `params` are (before, after). `float_seconds` and `seconds` are the latencies of
    the unpruned and of the pruned module on this machine, measured in turns (None where they
    were not), `predicted_seconds` what the table of latencies had foretold. `agreement` is the
    share of the `evaluated_samples` samples of `evaluated_on` for which both choose the same
    class, `interval` has the true share with 95 % confidence, `top1` and `float_top1` are the
    shares of right ones, if there are labels. With several `evaluated_folds`, each sample was
    judged by a pruning that had not seen it, and the module has learned from all of them.
    `groups` and `steps` are empty if no channels were to go, `sparse_layers` if no single weights
    were set to zero.
    """

    goal: str
    criterion: str
    recovery: str
    groups: tuple[GroupReport, ...]
    steps: tuple[StepReport, ...]
    flops: tuple[float, float]
    params: tuple[int, int]
    float_seconds: float | None = None
    seconds: float | None = None
    predicted_seconds: float | None = None
    agreement: float | None = None
    top1: float | None = None
    float_top1: float | None = None
    evaluated_on: str | None = None
    evaluated_samples: int = 0
    evaluated_folds: int = 0
    interval: tuple[float, float] | None = None
    distillation: DistillationResult | None = None
    sparse_layers: tuple[SparseLayer, ...] = ()
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def channels(self) -> float:
        """The share of the channels that is left."""
        before = sum(g.before for g in self.groups)
        return sum(g.after for g in self.groups) / before if before else 1.0

    @property
    def sparsity(self) -> float:
        """The share of the weights of all layers that are zero, as far as they were looked at."""
        weights = sum(layer.weights for layer in self.sparse_layers)
        return sum(layer.zeros for layer in self.sparse_layers) / weights if weights else 0.0

    @property
    def speedup(self) -> float | None:
        """How many times as fast the pruned module is."""
        if self.seconds is None or self.float_seconds is None:
            return None
        return self.float_seconds / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PruneReport:
        """The report that a module's manifest holds; KeyError or TypeError for other data."""
        known = dict(data)
        known["groups"] = tuple(GroupReport(**group) for group in known["groups"])
        known["steps"] = tuple(StepReport(**step) for step in known["steps"])
        layers = known.get("sparse_layers", ())
        known["sparse_layers"] = tuple(SparseLayer(**layer) for layer in layers)
        if known.get("distillation") is not None:
            from tinsmith.passes.prune.recovery.distillation import DistillationResult

            known["distillation"] = DistillationResult(**known["distillation"])
        for name in ("flops", "params", "notes", "interval"):
            if known.get(name) is not None:
                known[name] = tuple(known[name])
        return cls(**known)

    @property
    def _judged_on(self) -> str:
        folds = f", judged in {self.evaluated_folds} folds" if self.evaluated_folds > 1 else ""
        return f"{self.evaluated_samples}{folds}"

    def summary(self) -> str:
        """One line for a person."""
        parts = []
        if self.steps:
            parts.append(
                f"pruned by {self.criterion}: {self.channels:.0%} of the channels, "
                f"{self.params[1] / self.params[0]:.0%} of the parameters, "
                f"{self.flops[1] / self.flops[0]:.0%} of the operations left"
            )
        if self.sparse_layers:
            parts.append(f"{self.sparsity:.1%} of the weights zero (smaller packed, no faster)")
        if self.agreement is not None:
            parts.append(f"same top-1 on {self.agreement:.2%} of {self._judged_on}")
        if self.top1 is not None and self.float_top1 is not None:
            parts.append(f"top-1 {self.top1:.2%} (unpruned {self.float_top1:.2%})")
        if self.distillation is not None:
            told = self.distillation
            parts.append(
                f"distilled for {told.seconds:.0f} s ({told.epochs:.1f} epochs; agreement on "
                f"held-out samples {told.agreement_before:.2%} -> {told.agreement:.2%})"
            )
        if self.seconds is not None and self.float_seconds is not None:
            parts.append(
                f"{self.seconds * 1e3:.3f} ms (unpruned {self.float_seconds * 1e3:.3f} ms, "
                f"{self.float_seconds / self.seconds:.2f} times as fast)"
            )
        return ", ".join(parts)
