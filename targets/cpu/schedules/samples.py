"""Loops by number, for kernels that no template tiles: samples of MetaSchedule's generic space.

Number n is the schedule that MetaSchedule's rules for CPUs give with the random state n: tiles of
several levels, cached results, places of producers, unrolling. The same number gives the same
schedule on any machine with the same version of TVM. Nothing says which numbers are good: they
are for a search to try, and 0 stands for the template's own loops.
Source: Shao et al. 2022, "Tensor Program Optimization with Probabilistic Programs", section 3
(arXiv:2205.13603).
"""

from __future__ import annotations

import tvm
from tvm.s_tir import meta_schedule
from tvm.tirx import PrimFunc

from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions, Match

SAMPLE = "sample"
_COUNT = 256
# Operations for each byte: with fewer, memory decides and not the order of the loops.
_LEAST_INTENSITY = 4


def own_loops(match: Match) -> dict[str, int]:
    """The decision for the template's own loops, if there is one."""
    return {SAMPLE: 0} if sample_numbers(match) else {}


def sample_numbers(match: Match) -> dict[str, tuple[int, ...]]:
    """The decision with its values, if this kernel may gain by them."""
    if match.flops < _LEAST_INTENSITY * match.bytes:
        return {}
    return {SAMPLE: tuple(range(_COUNT))}


def is_sample(decisions: Decisions) -> bool:
    """Whether a sample takes the place of the template's own loops."""
    return decisions.get(SAMPLE, 0) > 0


def is_plain(decisions: Decisions, default: Decisions) -> bool:
    """Whether a sample comes with the other decisions of the default, which it does not use."""
    return not is_sample(decisions) or {**decisions, SAMPLE: 0} == default


def sampled(function: PrimFunc, decisions: Decisions, spec: TargetSpec) -> PrimFunc:
    """The sample that `decisions` name.

    Raises ValueError if MetaSchedule's rules do not apply to the function.
    """
    number = decisions[SAMPLE]
    rules = meta_schedule.ScheduleRule.create("llvm")
    generator = meta_schedule.space_generator.PostOrderApply(
        # Rules that operators name themselves are another target's, and each is warned of.
        sch_rules=[
            r for r in rules if not isinstance(r, meta_schedule.schedule_rule.ApplyCustomRule)
        ],
        postprocs=meta_schedule.Postproc.create("llvm"),
        mutator_probs={},  # nothing evolves; without them all defaults of the target are made
    )
    context = _Context(
        tvm.IRModule({"main": function.with_attr("global_symbol", "main")}),
        tvm.target.Target(spec.tvm_target_config()),
        generator,
        number,
    )
    # The rules leave a choice of structures, each with factors drawn for it.
    designs = context.generate_design_space()
    schedule = designs[number % len(designs)]
    if not all(process.apply(schedule) for process in generator.postprocs):
        raise ValueError(f"sample {number} of MetaSchedule's space cannot be completed")
    return schedule.mod["main"].without_attr("global_symbol")


class _Context(meta_schedule.TuneContext):
    """TVM's context without its constructor, which imports the tensor intrinsics of all targets.

    That takes 18 seconds, and the generic rules use none of them.
    """

    def __init__(
        self,
        module: tvm.IRModule,
        target: tvm.target.Target,
        generator: meta_schedule.SpaceGenerator,
        random_state: int,
    ) -> None:
        self.__init_handle_by_constructor__(
            meta_schedule.tune_context._ffi_api.TuneContext,
            module,
            target,
            generator,
            None,  # no strategy of search
            "sample",
            1,  # thread
            random_state,
            None,  # no logger
        )
        meta_schedule.tune_context._ffi_api.TuneContextInitialize(self)
