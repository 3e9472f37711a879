"""What every graph is compiled with that is run here on the way to a module."""

from __future__ import annotations

from dataclasses import dataclass, field

from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.module.write.build import Builds
from tinsmith.compiler.pipeline import Pipeline, configured
from tinsmith.targets.algorithms import AlgorithmLookup
from tinsmith.targets.registry import get_target
from tinsmith.targets.schedule import RecordLookup
from tinsmith.targets.spec import TargetSpec, UnknownTargetError


@dataclass(frozen=True)
class Workshop:
    """The machine at hand, `spec`, where graphs are calibrated, compared and timed.

    `pipeline` is that of this machine, with the algorithms and decisions of the module that is
    to be made, if that is for this machine: `is_target`. What is compiled here runs on so many
    `threads` (0: one for each core); symbols of kernels begin with `name`. `builds` keeps what
    was compiled last, for graphs that are looked at more than once.
    """

    spec: TargetSpec
    pipeline: Pipeline
    threads: int = 0
    name: str = "calibration"
    is_target: bool = False
    builds: Builds = field(default_factory=Builds, compare=False)


def workshop(
    config: CompileConfig,
    spec: TargetSpec,
    records: RecordLookup | None = None,
    algorithms: AlgorithmLookup | None = None,
    name: str = "calibration",
) -> Workshop:
    """The workshop in which a model of that `name` is made for `spec` as `config` has it.

    Decisions and algorithms of another machine are of no use here, but what the configuration
    forbids is forbidden here, too.
    """
    if local_spec(spec) is not None:
        pipeline = configured(config, spec, records, algorithms)
        return Workshop(spec, pipeline, config.threads, name, is_target=True)
    native = get_target("native")
    return Workshop(native, configured(config, native), config.threads, name)


def local_spec(spec: TargetSpec) -> TargetSpec | None:
    """`spec` if its kernels are those of the machine at hand, whatever its name; else None."""
    try:
        native = get_target("native")
    except UnknownTargetError:
        return None
    described = (spec.llvm_triple, spec.llvm_cpu, spec.llvm_attributes, spec.vector_bits)
    own = (native.llvm_triple, native.llvm_cpu, native.llvm_attributes, native.vector_bits)
    return spec if described == own else None
