"""What every graph is compiled with that is run here on the way to a module."""

from __future__ import annotations

from dataclasses import dataclass, field

from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.host import Host
from tinsmith.compiler.module.write.build import Builds
from tinsmith.compiler.pipeline import Pipeline, configured
from tinsmith.targets.algorithms import AlgorithmLookup
from tinsmith.targets.schedule import RecordLookup
from tinsmith.targets.spec import TargetSpec


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
    host: Host | None = None,
) -> Workshop:
    """The workshop in which a model of that `name` is made for `spec` as `config` has it.

    Decisions and algorithms of another machine are of no use here, but what the configuration
    forbids is forbidden here, too. `host` is the machine at hand; None finds it.

    Raises TargetError where graphs cannot be run.
    """
    host = host or Host.at_hand()
    if host.makes(spec):
        pipeline = configured(config, spec, records, algorithms)
        return Workshop(spec, pipeline, config.threads, name, is_target=True)
    return Workshop(host.spec, configured(config, host.spec), config.threads, name)
