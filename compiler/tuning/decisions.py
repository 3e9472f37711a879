"""What earlier searches have decided for a configuration."""

from __future__ import annotations

from dataclasses import dataclass

from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.tuning.algorithms import StoredAlgorithms
from tinsmith.compiler.tuning.lookup import StoredRecords, stores
from tinsmith.targets.spec import TargetSpec


@dataclass(frozen=True)
class StoredDecisions:
    """Records of kernels, None where the configuration asks for none, and of algorithms.

    `unread` are notes on stores that cannot be read.
    """

    records: StoredRecords | None
    algorithms: StoredAlgorithms
    unread: tuple[str, ...] = ()


def stored_decisions(config: CompileConfig, spec: TargetSpec) -> StoredDecisions:
    """The decisions for the kernels of `spec`; raises ConfigError if its log does not exist."""
    asked, unread = stores(config.log) if config.tuned else ((), ())
    records = StoredRecords(asked, spec) if config.tuned else None
    return StoredDecisions(records, StoredAlgorithms(records), unread)
