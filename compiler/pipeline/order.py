"""The steps from an imported graph to scheduled kernels, in order, with the reasons."""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import relax

from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.pipeline.pipeline import Pipeline
from tinsmith.compiler.pipeline.step import Outcome, Step
from tinsmith.passes.graph import (
    AbsorbInputTransposes,
    CancelTransposes,
    Canonicalize,
    ClampIndices,
    CombineConstants,
    ConvertLayout,
    DecomposeConvolutions,
    FoldBatchNorm,
    FoldConstants,
    Fuse,
    Legalize,
    RaisePrimitives,
    RecognizeComposites,
    SinkReshapes,
)
from tinsmith.passes.graph.conditions import KERNELS
from tinsmith.passes.quantize.fold_requantization import FoldRequantization
from tinsmith.passes.quantize.insert_quantization import InsertQuantization, QuantizationOptions
from tinsmith.passes.quantize.lower_integers import LowerIntegers
from tinsmith.passes.quantize.match_signedness import MatchSignedness
from tinsmith.passes.quantize.simplify_quantization import SimplifyQuantization
from tinsmith.passes.quantize.store_exact_codes import StoreExactCodes
from tinsmith.passes.quantize.store_integers import StoreIntegers
from tinsmith.targets.algorithms import AlgorithmLookup, DirectOnly, ForBatch
from tinsmith.targets.registry import backend_of
from tinsmith.targets.schedule import RecordLookup, schedule_module
from tinsmith.targets.spec import TargetSpec

# The steps before it only make the imported graph readable: here it is pruned, its layouts and
# batch normalisations as they were.
PRUNED_BEFORE = "fold_batch_norm"
# The step before which a graph is quantised: layout and folding are settled, and kernels not
# yet made.
QUANTIZED_BEFORE = "match_signedness"
# The last step.
SCHEDULE = "schedule"


def lowering(
    spec: TargetSpec,
    records: RecordLookup | None = None,
    algorithms: AlgorithmLookup | None = None,
    entries_first: bool = False,
) -> Pipeline:
    """The pipeline from an imported module to fused, scheduled kernels for `spec`.

    The module has one Relax function `main` with the weights as constants. In the result,
    `main` consists of `call_tir` of scheduled `PrimFunc`s and of reshapes, which move no data.

    `records` are the decisions of earlier searches; without them every kernel gets its
    template's default. `algorithms` are those that they found best for convolutions. With
    `entries_first` tasks compute the entries of a batch one after the other, if they can.
    """
    schedule = Step(SCHEDULE, _Schedule(spec, records, entries_first))
    steps = (*graph_passes(), *integer_passes(spec), *kernel_passes(spec, algorithms), schedule)
    return Pipeline(steps)


def configured(
    config: CompileConfig,
    spec: TargetSpec,
    records: RecordLookup | None = None,
    algorithms: AlgorithmLookup | None = None,
) -> Pipeline:
    """`lowering` as a configuration has it: it has the last word on Winograd's algorithm."""
    # Winograd's transformed weights have no zeros to be packed.
    sparse = config.pruning is not None and config.pruning.sparsity is not None
    if sparse or not config.winograd:
        algorithms = DirectOnly()
    elif config.range is not None:
        own = backend_of(spec).algorithms
        algorithms = ForBatch(algorithms, own, config.range.middle, config.range.high)
    return lowering(spec, records, algorithms, entries_first=config.range is not None)


def graph_passes() -> tuple[Step, ...]:
    """The passes on the graph before lowering to kernels, in order, by the name of their dump."""
    dead_code = relax.transform.DeadCodeElimination()
    return (
        Step("canonicalize", Canonicalize()),
        # Before anything evaluates or moves them: no kernel reads outside of its tensors.
        Step("clamp_indices", ClampIndices()),
        # Before all pattern matching: weights and bounds often hide behind a constant
        # permute_dims, reshape or where.
        Step("fold_constants", FoldConstants(keep_quantized=True)),
        Step("raise_primitives", RaisePrimitives()),
        # Again, because the raised operators (minimum, maximum, pad) have canonical forms too.
        Step("canonicalize_raised", Canonicalize()),
        # Before folding into weights, which would take a GELU's constants apart.
        Step("recognize_composites", RecognizeComposites()),
        Step("fold_batch_norm", FoldBatchNorm()),
        # Before layout, because it emits convolutions that want the layout too.
        Step("decompose_convolutions", DecomposeConvolutions()),
        Step("fold_constants_again", FoldConstants(keep_quantized=True)),
        Step("eliminate_common_subexpressions", relax.transform.EliminateCommonSubexpr()),
        Step("eliminate_dead_code", dead_code),
        Step("convert_layout", ConvertLayout()),
        Step("cancel_transposes", CancelTransposes()),
        # After cancelling: only now it is known which transposes reach a convolution.
        Step("absorb_input_transposes", AbsorbInputTransposes()),
        # After layout, because transposes pass through reshapes and leave new ones.
        Step("sink_reshapes", SinkReshapes()),
        Step("canonicalize_layout", Canonicalize()),
        # Layout conversion may make the same transpose or constant in several places.
        Step("combine_constants", CombineConstants()),
        Step("eliminate_common_subexpressions_again", relax.transform.EliminateCommonSubexpr()),
        Step("eliminate_dead_code_again", dead_code),
    )


def quantization_passes(
    spec: TargetSpec,
    ranges: Mapping[str, tuple[float, float]],
    options: QuantizationOptions | None = None,
) -> tuple[Step, ...]:
    """The passes that quantise a graph whose tensors have the given ranges.

    `ranges` has the smallest and largest value of each tensor that
    `tinsmith.passes.quantize.placement.observed_tensors` names in the graph after `graph_passes`.
    """
    return (Step("quantize", InsertQuantization(ranges, backend_of(spec).formats, options)),)


def integer_passes(spec: TargetSpec) -> tuple[Step, ...]:
    """The passes that make a quantised graph compute in integers; others they leave alone."""
    table = backend_of(spec).formats
    return (
        Step("match_signedness", MatchSignedness(table)),
        Step("simplify_quantization", SimplifyQuantization(table)),
        # Before folding, which would make weights float again; after simplifying, which
        # removes the conversions between integer operators.
        Step("lower_integers", LowerIntegers(table)),
        Step("store_integers", StoreIntegers()),
        # After storing, which looks for the conversions that this takes apart.
        Step("fold_requantization", FoldRequantization()),
        # Quantised constants that no integer operator reads become float here.
        Step("fold_quantized_constants", FoldConstants()),
        Step("eliminate_dead_conversions", relax.transform.DeadCodeElimination()),
    )


def kernel_passes(
    spec: TargetSpec,
    algorithms: AlgorithmLookup | None = None,
) -> tuple[Step, ...]:
    """The passes from operators to fused kernels, in order, by the name of their dump."""
    backend = backend_of(spec)
    own = backend.legalizers(spec, algorithms)
    return (
        # Last on the graph: weights that have become float constants are what kernels read.
        Step("store_exact_codes", _store_exact_codes),
        Step("legalize", Legalize({**own, **backend.conversions()}, first=own)),
        # Definitions of the target may leave shape arithmetic on weights behind.
        Step("fold_legalized", FoldConstants()),
        Step("fuse", Fuse()),
        Step("eliminate_dead_kernels", relax.transform.DeadCodeElimination()),
    )


def _store_exact_codes(module: tvm.IRModule) -> Outcome:
    notes: list[str] = []

    def stored(count: int, floats: int, codes: int) -> None:
        notes.append(
            f"{count} weights lie exactly on grids of few bits: codes of {codes / 2**20:.2f} MiB "
            f"stand for {floats / 2**20:.2f} MiB of floats (which stay where they are faster)"
        )

    step: tvm.transform.Pass = StoreExactCodes(stored)
    return Outcome(step(module), notes=tuple(notes))


class _Schedule:
    """Schedules every kernel, see `tinsmith.targets.schedule`."""

    requires = (KERNELS,)

    def __init__(self, spec: TargetSpec, records: RecordLookup | None, entries_first: bool) -> None:
        self._spec = spec
        self._records = records
        self._entries_first = entries_first

    def __call__(self, module: tvm.IRModule) -> Outcome:
        scheduled, reports = schedule_module(module, self._spec, self._records, self._entries_first)
        return Outcome(scheduled, kernels=reports)
