"""Which tuning records a compilation has applied, and which it has not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm.tirx import PrimFunc

from tinsmith.compiler.module.manifest import RecordEntry, TuningEntry
from tinsmith.compiler.tuning.algorithms import StoredAlgorithms
from tinsmith.compiler.tuning.lookup import StoredRecords, told_of_ignored
from tinsmith.compiler.tuning.records import Subject, workload_key
from tinsmith.targets.template import UNFIT, KernelReport


def tuning_of(
    kernels: Sequence[KernelReport],
    fused: Mapping[str, PrimFunc],
    records: StoredRecords | None,
    algorithms: StoredAlgorithms,
) -> TuningEntry:
    """The records behind `kernels`; `fused` are the same before they were scheduled, by name."""
    applied = []
    for kernel in kernels:
        record = None
        if records is not None and kernel.source == "record" and kernel.name in fused:
            workload = workload_key(fused[kernel.name])
            record = records.record(Subject(kernel.template, kernel.template_version, workload))
        if record is not None:
            applied.append(
                RecordEntry(
                    kernel.name,
                    record.ratio,
                    record.trials,
                    record.provenance.get("processor", ""),
                    record.provenance.get("date", ""),
                )
            )
    return TuningEntry(_coverage(kernels, records, algorithms), tuple(applied))


def _coverage(
    kernels: Sequence[KernelReport], records: StoredRecords | None, algorithms: StoredAlgorithms
) -> str:
    """How many kernels have records, of those whose templates leave something to decide.

    Records that are not applied are counted too, with the reason.
    """
    counted = [kernel for kernel in kernels if kernel.decisions]
    found = sum(kernel.source == "record" for kernel in counted)
    rest = len(counted) - found
    defaults = f"{rest} template default{'s' if rest != 1 else ''}"
    told = f"{found} of {len(counted)} kernels from records, {defaults}"
    if algorithms.asked:
        told = f"{told}; {algorithms.coverage()}"
    ignored = told_of_ignored(records, sum(kernel.source == UNFIT for kernel in kernels))
    return "; ".join(filter(None, (told, ignored)))
