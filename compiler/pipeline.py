"""The phases from an imported graph to scheduled kernels, in order, with the reasons."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import relax

from tinsmith.compiler.errors import ConfigError, PassError, TinsmithError
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
from tinsmith.passes.quantize.fold_requantization import FoldRequantization
from tinsmith.passes.quantize.insert_quantization import InsertQuantization, QuantizationOptions
from tinsmith.passes.quantize.lower_integers import LowerIntegers
from tinsmith.passes.quantize.match_signedness import MatchSignedness
from tinsmith.passes.quantize.simplify_quantization import SimplifyQuantization
from tinsmith.passes.quantize.store_exact_codes import Report as StoredReport
from tinsmith.passes.quantize.store_exact_codes import StoreExactCodes
from tinsmith.passes.quantize.store_integers import StoreIntegers
from tinsmith.targets.algorithms import AlgorithmLookup
from tinsmith.targets.registry import backend_of
from tinsmith.targets.schedule import RecordLookup, schedule_module
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import KernelReport

Step = tuple[str, tvm.transform.Pass]
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class PassTiming:
    """Time that one pass took, and the bindings (calls, mostly) of the graph after it."""

    name: str
    seconds: float
    verification_seconds: float
    bindings: int


@dataclass(frozen=True)
class PipelineReport:
    """What the pipeline did: each pass in order, and how each kernel was scheduled.

    `fused` is the module before its kernels were scheduled: what a tuning job begins with.
    """

    passes: tuple[PassTiming, ...]
    kernels: tuple[KernelReport, ...]
    fused: tvm.IRModule
    dumped: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Time of all passes and verifications."""
        return sum(timing.seconds + timing.verification_seconds for timing in self.passes)

    @property
    def pass_names(self) -> tuple[str, ...]:
        """The passes in the order in which they ran."""
        return tuple(timing.name for timing in self.passes)


def graph_passes() -> tuple[Step, ...]:
    """The passes on the graph before lowering to kernels, in order, by the name of their dump."""
    dead_code = relax.transform.DeadCodeElimination()
    return (
        ("canonicalize", Canonicalize()),
        # Before anything evaluates or moves them: no kernel reads outside of its tensors.
        ("clamp_indices", ClampIndices()),
        # Before all pattern matching: weights and bounds often hide behind a constant
        # permute_dims, reshape or where.
        ("fold_constants", FoldConstants(keep_quantized=True)),
        ("raise_primitives", RaisePrimitives()),
        # Again, because the raised operators (minimum, maximum, pad) have canonical forms too.
        ("canonicalize_raised", Canonicalize()),
        # Before folding into weights, which would take a GELU's constants apart.
        ("recognize_composites", RecognizeComposites()),
        ("fold_batch_norm", FoldBatchNorm()),
        # Before layout, because it emits convolutions that want the layout too.
        ("decompose_convolutions", DecomposeConvolutions()),
        ("fold_constants_again", FoldConstants(keep_quantized=True)),
        ("eliminate_common_subexpressions", relax.transform.EliminateCommonSubexpr()),
        ("eliminate_dead_code", dead_code),
        ("convert_layout", ConvertLayout()),
        ("cancel_transposes", CancelTransposes()),
        # After cancelling: only now it is known which transposes reach a convolution.
        ("absorb_input_transposes", AbsorbInputTransposes()),
        # After layout, because transposes pass through reshapes and leave new ones.
        ("sink_reshapes", SinkReshapes()),
        ("canonicalize_layout", Canonicalize()),
        # Layout conversion may make the same transpose or constant in several places.
        ("combine_constants", CombineConstants()),
        ("eliminate_common_subexpressions_again", relax.transform.EliminateCommonSubexpr()),
        ("eliminate_dead_code_again", dead_code),
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
    return (("quantize", InsertQuantization(ranges, backend_of(spec).formats, options)),)


def integer_passes(spec: TargetSpec) -> tuple[Step, ...]:
    """The passes that make a quantised graph compute in integers; others they leave alone."""
    table = backend_of(spec).formats
    return (
        ("match_signedness", MatchSignedness(table)),
        ("simplify_quantization", SimplifyQuantization(table)),
        # Before folding, which would make weights float again; after simplifying, which
        # removes the conversions between integer operators.
        ("lower_integers", LowerIntegers(table)),
        ("store_integers", StoreIntegers()),
        # After storing, which looks for the conversions that this takes apart.
        ("fold_requantization", FoldRequantization()),
        # Quantised constants that no integer operator reads become float here.
        ("fold_quantized_constants", FoldConstants()),
        ("eliminate_dead_conversions", relax.transform.DeadCodeElimination()),
    )


def kernel_passes(
    spec: TargetSpec,
    algorithms: AlgorithmLookup | None = None,
    stored: StoredReport | None = None,
) -> tuple[Step, ...]:
    """The passes from operators to fused kernels, in order, by the name of their dump.

    `stored` is told what weights take that are stored in few bits.
    """
    backend = backend_of(spec)
    own = backend.legalizers(spec, algorithms)
    return (
        # Last on the graph: weights that have become float constants are what kernels read.
        ("store_exact_codes", StoreExactCodes(stored)),
        ("legalize", Legalize({**own, **backend.conversions()}, first=own)),
        # Definitions of the target may leave shape arithmetic on weights behind.
        ("fold_legalized", FoldConstants()),
        ("fuse", Fuse()),
        ("eliminate_dead_kernels", relax.transform.DeadCodeElimination()),
    )


def lower(
    module: tvm.IRModule,
    spec: TargetSpec,
    *,
    dump: Path | None = None,
    progress: Progress | None = None,
    records: RecordLookup | None = None,
    algorithms: AlgorithmLookup | None = None,
    quantization: Callable[[tvm.IRModule], Sequence[Step]] | None = None,
) -> tuple[tvm.IRModule, PipelineReport]:
    """Lower an imported module to fused, scheduled kernels for `spec`.

    `module` has one Relax function `main` with the weights as constants. In the
    result, `main` consists of `call_tir` of scheduled `PrimFunc`s and of
    reshapes, which move no data.

    The module is verified before the first pass and after each. With `dump`,
    that folder receives `NN_name.py` after each pass: the module as script,
    constants elided. `progress` is called with the name of each phase that
    begins and the share of phases that are done. `records` are the decisions of
    earlier searches; without them every kernel gets its template's default. `algorithms`
    are the algorithms that they found best for convolutions.
    `quantization` is called with the graph after `graph_passes` and answers the
    passes that quantise it (`quantization_passes`), calibrated on that very graph.

    Raises PassError if a module is ill-formed or a pass fails, naming the pass, and
    ConfigError if `dump` cannot be written.
    """
    runner = PassRunner(dump=dump)
    on_graph = list(graph_passes())
    notes: list[str] = []

    def stored(count: int, floats: int, codes: int) -> None:
        notes.append(
            f"{count} weights lie exactly on grids of few bits: codes of {codes / 2**20:.2f} MiB "
            f"stand for {floats / 2**20:.2f} MiB of floats (which stay where they are faster)"
        )

    later = [*integer_passes(spec), *kernel_passes(spec, algorithms, stored)]
    phases = len(on_graph) + len(later) + 1
    runner.verify(module, "the imported module")
    for done, (name, step) in enumerate(on_graph):
        if progress is not None:
            progress(name, done / phases)
        module = runner.run(name, step, module)
    if quantization is not None:
        # Last on the graph: layout and folding are settled, and kernels not yet made.
        later = [*quantization(module), *later]
    for done, (name, step) in enumerate(later, len(on_graph)):
        if progress is not None:
            progress(name, min(done / phases, 1.0))
        module = runner.run(name, step, module)
    if progress is not None:
        progress("schedule", (phases - 1) / phases)
    kernels: list[KernelReport] = []
    unscheduled = module

    def schedule(fused: tvm.IRModule) -> tvm.IRModule:
        scheduled, reports = schedule_module(fused, spec, records)
        kernels.extend(reports)
        return scheduled

    module = runner.run("schedule", schedule, module)
    report = PipelineReport(
        tuple(runner.timings), tuple(kernels), unscheduled, tuple(runner.dumped), tuple(notes)
    )
    return module, report


class PassRunner:
    """Runs passes one by one; verifies, times and dumps the module after each."""

    def __init__(self, dump: Path | None = None) -> None:
        self.timings: list[PassTiming] = []
        self.dumped: list[Path] = []
        self._folder = dump

    def run(
        self, name: str, step: Callable[[tvm.IRModule], tvm.IRModule], module: tvm.IRModule
    ) -> tvm.IRModule:
        """The module after the pass; raises PassError if it fails or breaks the module.

        What a pass refuses on purpose, and the user can mend, is raised as it is.
        """
        begin = time.perf_counter()
        try:
            module = step(module)
        except TinsmithError:
            raise
        except Exception as error:
            raise self._error(f"pass {name} failed: {_first_line(error)}") from error
        end = time.perf_counter()
        self._write(name, module)
        verified = time.perf_counter()
        self.verify(module, f"pass {name} failed: the module after it")
        self.timings.append(
            PassTiming(name, end - begin, time.perf_counter() - verified, count_bindings(module))
        )
        return module

    def verify(self, module: tvm.IRModule, what: str) -> None:
        """Raise PassError if the module is not well-formed."""
        try:
            relax.analysis.well_formed(module)
        except Exception as error:
            raise self._error(f"{what} is ill-formed: {_first_line(error)}") from error

    def _error(self, message: str) -> PassError:
        where = "--dump DIR writes the module after each pass"
        if self._folder is not None:
            where = f"the module after each pass is in {self._folder}"
        return PassError(
            f"{message} (this is a bug in Tinsmith; {where})",
            [timing.name for timing in self.timings],
        )

    def _write(self, name: str, module: tvm.IRModule) -> None:
        if self._folder is None:
            return
        path = self._folder / f"{len(self.timings):02d}_{name}.py"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path.write_text(module.script(show_meta=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"--dump {self._folder}: cannot write {path.name}: {error}"
            ) from error
        self.dumped.append(path)


def count_bindings(module: tvm.IRModule) -> int:
    """Number of bindings in the Relax functions of a module."""
    bodies: Sequence[relax.Expr] = [
        function.body
        for _, function in module.functions_items()
        if isinstance(function, relax.Function)
    ]
    return sum(
        len(block.bindings)
        for body in bodies
        if isinstance(body, relax.SeqExpr)
        for block in body.blocks
    )


def _first_line(error: Exception) -> str:
    """The line of an error that says what is wrong; TVM puts a backtrace around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "Error" in line or "Check failed" in line]
    return (told or lines or [type(error).__name__])[0]
