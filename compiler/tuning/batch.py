"""Builds, checks and times a batch of candidates of one kernel: what runs in a worker's child.

All candidates become kernels of one small module, so that they are linked once
and timed in turns: each round runs every candidate, so that all see the same
clock and the same neighbours. The template's default is one of them: it is the
yardstick of speed and the reference of correctness.

Weights come from where they come from in the model: there are so many copies of
them, used in turn, as make the working set of a round that of a run of the model.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm_ffi
from tvm import relax
from tvm.tirx import PrimFunc

from tinsmith.compiler.evaluate.compare import compare
from tinsmith.compiler.evaluate.inputs import Domain, random_inputs
from tinsmith.compiler.module.loader import load
from tinsmith.compiler.module.selfcontained import SelfContainedModule
from tinsmith.compiler.module.signature import numpy_dtype
from tinsmith.compiler.module.write.lowered import LoweredModel
from tinsmith.compiler.module.write.writer import write_module
from tinsmith.compiler.tuning.records import decisions_key
from tinsmith.targets.buffers import buffer_shape
from tinsmith.targets.schedule import match_template, schedule_function
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Decisions

# Other load only ever adds time: the lower quartile of the rounds is steadier than the median.
_QUANTILE = 0.25
ROUNDS = (7, 400)
_TOLERANCE = {"bfloat16": 1e-2}
_FLOAT_TOLERANCE = 1e-4
# So much is put between two uses of the same weights at most.
_MOST_COPIES_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Kernel:
    """What is tuned: a fused function and what it is called with in the model.

    `constants` are the arguments that the model has as constants, by position; the others are
    random. `outputs` of its parameters, the last ones, are written. `resident_bytes` is what
    the model reads between two calls of one kernel: its weights.
    """

    function: PrimFunc
    constants: Mapping[int, np.ndarray]
    outputs: int
    resident_bytes: int


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate: seconds of one call, or the reason why there are none."""

    seconds: float = 0.0
    failure: str = ""


@dataclass(frozen=True)
class BatchResult:
    """Seconds of the default, the outcome of each candidate, and seconds spent on two things."""

    default_seconds: float
    outcomes: tuple[Outcome, ...]
    build_seconds: float
    run_seconds: float


@dataclass(frozen=True)
class BuiltBatch:
    """A module that calls one candidate after the other: a warm-up, the default, the rest.

    `places` tells for each candidate which call it is, or why it is none.
    """

    path: Path
    arguments: Arguments
    places: tuple[int | str, ...]
    seconds: float


def run_batch(
    kernel: Kernel,
    candidates: Sequence[Decisions],
    spec: TargetSpec,
    folder: Path,
    seconds: float,
) -> BatchResult:
    """Build and time `candidates` for about `seconds`, in the empty `folder`.

    Raises whatever building or loading raises: then one of the candidates is at fault.
    """
    batch = build_batch(kernel, candidates, spec, folder)
    begin = time.perf_counter()
    with load(batch.path, threads=spec.cores) as module:
        assert isinstance(module, SelfContainedModule)
        wrong = _wrong(module, batch.arguments)
        rounds = _time(module, batch.arguments, seconds)
    default, outcomes = judge(batch.places, wrong, rounds)
    return BatchResult(default, outcomes, batch.seconds, time.perf_counter() - begin)


def build_batch(
    kernel: Kernel, candidates: Sequence[Decisions], spec: TargetSpec, folder: Path
) -> BuiltBatch:
    """Build `candidates` in the empty `folder`; those that schedule to the same code once.

    Raises whatever building raises: then one of the candidates is at fault.
    """
    begin = time.perf_counter()
    template, match = match_template(kernel.function, spec)
    default = template.default(match, spec)
    scheduled: dict[object, PrimFunc] = {}
    slots: dict[object, object] = {}
    failures: dict[object, str] = {}
    for decisions in (default, *candidates):
        key = decisions_key(decisions)
        if key in slots or key in failures:
            continue
        try:
            function = schedule_function(kernel.function, template, match, decisions, spec)
        except (ValueError, RuntimeError, TypeError, KeyError, ZeroDivisionError) as error:
            failures[key] = f"cannot be scheduled: {_last_line(error)}"
            continue
        slots[key] = tvm_ffi.StructuralKey(function)
        scheduled.setdefault(slots[key], function)
    if decisions_key(default) in failures:
        raise ValueError(failures[decisions_key(default)])
    distinct = list(scheduled)
    arguments = Arguments(kernel, len(distinct) + 1)
    # The first call follows a pause, in which threads fall asleep: it does not count.
    functions = [scheduled[key] for key in (distinct[0], *distinct)]
    lowered = _module_of(functions, arguments, spec)
    written = write_module(lowered, folder / "module", forms=("shared",), embed_weights=True)
    if written.manifest.form != "self-contained":
        raise ValueError("the kernel needs TVM's virtual machine")
    call_of = {key: call for call, key in enumerate(distinct, 1)}
    keys = [decisions_key(decisions) for decisions in candidates]
    places = tuple(failures[key] if key in failures else call_of[slots[key]] for key in keys)
    return BuiltBatch(written.path, arguments, places, time.perf_counter() - begin)


def judge(
    places: Sequence[int | str], wrong: Sequence[str], rounds: np.ndarray
) -> tuple[float, tuple[Outcome, ...]]:
    """Seconds of the default, and the outcome of each candidate.

    `wrong` tells for each call how its results differ from the first's; `rounds` are seconds,
    (rounds, calls).
    """
    times = np.quantile(rounds, _QUANTILE, axis=0)

    def outcome(place: int | str) -> Outcome:
        if isinstance(place, str):
            return Outcome(failure=place)
        if wrong[place]:
            return Outcome(failure=f"computes something else than the default: {wrong[place]}")
        return Outcome(float(times[place]))

    return float(times[1]), tuple(outcome(place) for place in places)


def tolerance_of(dtype: str) -> float:
    """Largest deviation from the default's result, relative to its range."""
    return _TOLERANCE.get(dtype, _FLOAT_TOLERANCE)


class Arguments:
    """Arrays for `count` calls of a kernel: what each is given, and where it writes."""

    def __init__(self, kernel: Kernel, count: int) -> None:
        parameters = kernel.function.params
        read = parameters[: len(parameters) - kernel.outputs]
        types = [(buffer_shape(p), str(p.ty.dtype)) for p in read]
        computed = [i for i in range(len(read)) if i not in kernel.constants]
        weights = [i for i in range(len(read)) if i in kernel.constants]
        one_copy = max(1, sum(kernel.constants[i].nbytes for i in weights))
        wanted = min(kernel.resident_bytes, _MOST_COPIES_BYTES) // one_copy
        copies = max(1, min(count, wanted))
        self.types: list[tuple[tuple[int, ...], str]] = []
        self.arrays: list[np.ndarray] = []
        for i in computed:
            self._add(types[i], _random(*types[i], seed=i))
        for _ in range(copies):
            for i in weights:
                self._add(types[i], _in_small_pages(kernel.constants[i]))
        self.calls: list[list[int]] = []
        for call in range(count):
            first = len(computed) + call % copies * len(weights)
            place = {i: n for n, i in enumerate(computed)}
            place |= {i: first + n for n, i in enumerate(weights)}
            self.calls.append([place[i] for i in range(len(read))])
        self.results = [
            (buffer_shape(p), str(p.ty.dtype))
            for p in parameters[len(parameters) - kernel.outputs :]
        ]

    def _add(self, kind: tuple[tuple[int, ...], str], array: np.ndarray) -> None:
        self.types.append(kind)
        self.arrays.append(array)

    def new_results(self) -> list[np.ndarray]:
        """Arrays for the outputs of one call."""
        return [np.zeros(shape, numpy_dtype(dtype)) for shape, dtype in self.results]


def _random(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    if dtype == "bfloat16":
        values = random_inputs({"x": (shape, "float32")}, {}, seed)["x"]
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    # An integer of more than 8 bits may be an index: 0 is always one.
    high = 256 if dtype in ("int8", "uint8") else 1
    return random_inputs({"x": (shape, dtype)}, {"x": Domain.below(high)}, seed)["x"]


def _in_small_pages(array: np.ndarray) -> np.ndarray:
    """A copy in pages as a file has them: numpy asks for huge ones, which are read faster."""
    memory = mmap.mmap(-1, max(array.nbytes, 1))
    copy = np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
    copy[...] = array
    return copy


def _module_of(
    functions: Sequence[PrimFunc], arguments: Arguments, spec: TargetSpec
) -> LoweredModel:
    """A model that calls each of `functions` in turn and returns what they compute."""
    builder = relax.BlockBuilder()
    parameters = [
        relax.Var(f"x{i}", relax.TensorType(shape, dtype))
        for i, (shape, dtype) in enumerate(arguments.types)
    ]
    kinds = [relax.TensorType(shape, dtype) for shape, dtype in arguments.results]
    results: list[relax.Expr] = []
    with builder.function("main", parameters):
        with builder.dataflow():
            for i, (function, places) in enumerate(zip(functions, arguments.calls, strict=True)):
                callee = builder.add_func(function, f"candidate{i}")
                taken = [parameters[place] for place in places]
                kind = kinds if len(kinds) > 1 else kinds[0]
                made = builder.emit(relax.call_tir(callee, taken, kind))
                fields = [relax.TupleGetItem(made, n) for n in range(len(kinds))]
                parts = [builder.emit(f) for f in fields] if len(kinds) > 1 else [made]
                results += [builder.emit_output(part) for part in parts]
        builder.emit_func_output(relax.Tuple(results))
    return LoweredModel(
        module=builder.get(),
        spec=spec,
        input_names=tuple(p.name for p in parameters),
        output_names=tuple(f"y{i}" for i in range(len(results))),
        source_name="candidates",
    )


def _wrong(module: SelfContainedModule, arguments: Arguments) -> list[str]:
    """For each call, how its results differ from those of the first; empty if they agree."""
    results = [arguments.new_results() for _ in arguments.calls]
    module.run(arguments.arrays, [array for made in results for array in made])
    told = []
    for made in results:
        reason = ""
        for array, expected, (_, dtype) in zip(made, results[0], arguments.results, strict=True):
            actual, default = _floats(array, dtype), _floats(expected, dtype)
            difference = compare("y", actual, default, tolerance_of(dtype))
            if not difference.agrees:
                reason = difference.detail or f"off by {difference.relative:.1e} of the range"
        told.append(reason)
    return told


def _floats(array: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers, if the array has bfloat16 as bits."""
    if dtype != "bfloat16":
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)


def _time(module: SelfContainedModule, arguments: Arguments, seconds: float) -> np.ndarray:
    """Seconds of each call in rounds of all calls in turn: (rounds, calls)."""
    # One place for the results of all: a model's arena is as warm.
    shared = arguments.new_results() * len(arguments.calls)
    rounds: list[list[float]] = []
    context = module.context()
    try:
        context.profile(arguments.arrays, 1, shared)
        deadline = time.perf_counter() + seconds
        least, most = ROUNDS
        while len(rounds) < least or (time.perf_counter() < deadline and len(rounds) < most):
            steps = context.profile(arguments.arrays, 1, shared)
            rounds.append([step.seconds for step in steps])
    finally:
        context.close()
    return np.array(rounds)


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[-1].split())[:300]
