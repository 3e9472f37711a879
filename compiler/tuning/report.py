"""What a tuning job is asked for, shows while it runs, and answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.tuning.boards.address import parse_address

STRATEGIES = ("model", "random")

# Why a kernel is left alone that an earlier job has searched.
HAS_RECORD = "has a record"


@dataclass(frozen=True)
class TuneOptions:
    """How long and where a tuning job searches.

    minutes: wall time of the job, about.
    trials: most candidates for one kernel; a search also ends when it stops getting better.
    tasks: how many kernels, those with the most time first; 0 means all that matter.
    log: the folder of records and trials; None is the user's.
    seed: of the search. The same trials lead to the same proposals.
    resume: search on from where a finished job stopped. A job that was interrupted goes on
        without.
    fresh: search again what has records, and forget earlier trials.
    strategy: `model` (XGBoost) or `random`.
    extensions: modules that workers import, for templates that are not Tinsmith's own.
    rpc: `HOST:PORT` of a tracker of TVM's RPC, to measure on the boards that it lends and not
        on this machine. RPC is remote code execution without a password: docs/remote-boards.md.
    key: the name under which the boards have registered with the tracker.
    """

    minutes: float = 10.0
    trials: int = 160
    tasks: int = 0
    log: Path | None = None
    seed: int = 0
    resume: bool = False
    fresh: bool = False
    strategy: str = "model"
    extensions: tuple[str, ...] = ()
    rpc: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= 10_000:
            raise ConfigError(f"minutes must be more than 0 and at most 10000, not {self.minutes}")
        for name, low in (("trials", 1), ("tasks", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ConfigError(f"{name} must be an integer of at least {low}, not {value!r}")
        if self.resume and self.fresh:
            raise ConfigError("to go on (resume) or to begin anew (fresh): choose one")
        for name in ("rpc", "key"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ConfigError(f"{name} must be text, not {value!r}")
        if (self.rpc is None) != (self.key is None):
            raise ConfigError("--rpc HOST:PORT and --key NAME belong together: give both")
        if self.rpc is not None:
            parse_address(self.rpc)
        if self.strategy not in STRATEGIES:
            raise ConfigError(f"strategy must be one of {', '.join(STRATEGIES)}")


@dataclass(frozen=True)
class TaskRow:
    """One kernel of a job. `ratio` is the best time relative to the default's, 1 or less.

    `microseconds` are those of one call with the default decisions, `share` is that of all
    calls in a run of the model.
    """

    kernel: str
    template: str
    calls: int
    share: float
    microseconds: float
    ratio: float
    trials: int
    failures: int
    state: str


@dataclass(frozen=True)
class JobView:
    """What there is to see of a running job; `eta_seconds` is when it ends at the latest."""

    phase: str
    rows: tuple[TaskRow, ...]
    seconds: float
    eta_seconds: float


@dataclass(frozen=True)
class TuneReport:
    """What a job did. Milliseconds are medians of whole models, 0 if they were not compared.

    `trials` were measured by this job; `kept` kernels run with decisions other than the
    defaults from now on. `overhead` is the share of the wall time that was spent neither
    building nor running candidates or whole models: on lowering and quantising the model, on
    the search, the log, and on starting processes. `left_alone` tells of kernels that were not
    searched, and why.
    """

    model: str
    target: str
    folder: Path
    rows: tuple[TaskRow, ...]
    left_alone: tuple[tuple[str, str], ...]
    trials: int
    kept: int
    before_ms: float
    after_ms: float
    seconds: float
    overhead: float
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line for a person."""
        if not self.rows and not self.trials:
            known = "this was tuned before"
            if any(reason != HAS_RECORD for _, reason in self.left_alone):
                known = "every kernel has a record, takes too little time, or leaves no choice"
            return f"nothing to search: {known}; --resume searches on, --fresh anew"
        told = f"{self.trials} trials of {len(self.rows)} kernels in {self.seconds:.0f} s"
        if not self.kept:
            return f"{told}; the template defaults stay"
        gain = self.before_ms / self.after_ms
        kernels = "1 kernel has" if self.kept == 1 else f"{self.kept} kernels have"
        return (
            f"{told}; {kernels} new decisions: {self.before_ms:.3f} ms became "
            f"{self.after_ms:.3f} ms, {gain:.2f}x"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "folder": str(self.folder), "summary": self.summary()}
