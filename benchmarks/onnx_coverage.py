"""How many of the onnx package's node tests import, run and match, beside stock TVM.

The score counts the static float tests: all inputs and outputs are tensors, those of
floating point are float32, and only operators of the standard domain occur. Inputs
that decide shapes (the new shape of a Reshape, the axes of a ReduceSum) are bound to
their values for both sides, as a model would have them. Each test runs in a worker
process that is killed when it hangs and replaced when it crashes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import selectors
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

# Inputs, by position, that decide the shape of an output or play the role of an attribute.
BOUND_INPUTS: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "MaxUnpool": (2,),
    "NonMaxSuppression": (2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 2, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "STFT": (1, 3),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
BOUND_INPUTS |= {f"Reduce{name}": (1,) for name in _REDUCTIONS}
_FLOATS = frozenset(
    getattr(onnx.TensorProto, name)
    for name in list(onnx.TensorProto.DataType.keys())
    if "FLOAT" in name or name in ("DOUBLE", "COMPLEX64", "COMPLEX128")
)
ENGINES = ("ours", "stock")


@dataclass(frozen=True)
class Case:
    """One node test: a model, its inputs in order, and what should come out."""

    name: str
    model: bytes
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Result:
    """How one engine did on one case; `reason` is empty if it passed."""

    name: str
    engine: str
    reason: str

    @property
    def passed(self) -> bool:
        return not self.reason


def static_float_cases() -> list[Case]:
    """The cases that count, in order of their names."""
    from onnx.backend.test.case.node import collect_testcases

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    found = []
    for case in sorted(cases, key=lambda case: case.name):
        if case.model is None or not case.data_sets or not _counts(case.model):
            continue
        inputs, outputs = case.data_sets[0]
        arrays = [tuple(np.asarray(array) for array in group) for group in (inputs, outputs)]
        model, values = _bind(case.model, arrays[0])
        found.append(
            Case(case.name, model.SerializeToString(), values, arrays[1], case.rtol, case.atol)
        )
    return found


def _counts(model: onnx.ModelProto) -> bool:
    values = [*model.graph.input, *model.graph.output]
    if not all(value.type.HasField("tensor_type") for value in values):
        return False
    types = {value.type.tensor_type.elem_type for value in values}
    inputs = {value.type.tensor_type.elem_type for value in model.graph.input}
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return (
        onnx.TensorProto.FLOAT in inputs
        and types & _FLOATS == {onnx.TensorProto.FLOAT}
        and onnx.TensorProto.STRING not in types
        and all(node.domain in ("", "ai.onnx") for node in nodes)
    )


def _bind(
    model: onnx.ModelProto, values: Sequence[np.ndarray]
) -> tuple[onnx.ModelProto, tuple[np.ndarray, ...]]:
    """`model` with its shape-deciding inputs as initializers, and the inputs that remain."""
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    names = {
        node.input[position]
        for node in model.graph.node
        for position in BOUND_INPUTS.get(node.op_type, ())
        if position < len(node.input)
    }
    if len(model.graph.node) > 1:
        # A function body: the tests of operators that are spelled out by others pass the same
        # inputs on through other nodes, so that all integers of rank 0 and 1 are bound.
        names |= {
            value.name
            for value in model.graph.input
            if value.type.tensor_type.elem_type == onnx.TensorProto.INT64
            and len(value.type.tensor_type.shape.dim) <= 1
        }
    remaining = []
    del bound.graph.input[:]
    for value, array in zip(model.graph.input, values, strict=True):
        if value.name in names:
            bound.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        else:
            bound.graph.input.append(value)
            remaining.append(array)
    return bound, tuple(remaining)


def run_case(case: Case, engine: str) -> str:
    """Why `engine` fails on `case`, or an empty string."""
    model = onnx.ModelProto()
    model.ParseFromString(case.model)
    run = _run_ours if engine == "ours" else _run_stock
    try:
        actual_outputs = run(model, case)
    except _ImportError as error:
        return f"import: {_brief(error)}"
    except Exception as error:
        return f"run: {_brief(error)}"
    if len(actual_outputs) != len(case.outputs):
        return f"outputs: {len(actual_outputs)} instead of {len(case.outputs)}"
    for actual, expected in zip(actual_outputs, case.outputs, strict=True):
        if actual.shape != expected.shape:
            return f"shape: {actual.shape} instead of {expected.shape}"
        if actual.dtype != expected.dtype:
            return f"dtype: {actual.dtype} instead of {expected.dtype}"
        if not np.allclose(actual, expected, case.rtol, case.atol, equal_nan=True):
            return "values differ"
    return ""


class _ImportError(Exception):
    """The front end refused the model."""


def _run_ours(model: onnx.ModelProto, case: Case) -> list[np.ndarray]:
    """Tinsmith from end to end: imported, scheduled, linked, loaded, run."""
    from tinsmith import compile_to, load
    from tinsmith.compiler.errors import ModelError

    with tempfile.TemporaryDirectory() as folder:
        try:
            report = compile_to(
                model, Path(folder) / "m", golden=False, runner=False, static_library=False
            )
        except ModelError as error:
            raise _ImportError(str(error)) from error
        with load(report.path, threads=1) as module:
            return module.run([np.array(array, order="C") for array in case.inputs])


def _run_stock(model: onnx.ModelProto, case: Case) -> list[np.ndarray]:
    """TVM's own front end and default pipeline."""
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    try:
        module = from_onnx(model, keep_params_in_input=False)
    except Exception as error:
        raise _ImportError(str(error)) from error
    target = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"})
    machine = relax.VirtualMachine(tvm.compile(module, target), tvm.cpu())
    result = machine["main"](*[tvm.runtime.tensor(np.array(a)) for a in case.inputs])
    tensors = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
    return [tensor.numpy() for tensor in tensors]


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:160] if lines else ''}"


class Worker:
    """A process that runs one case after the other, each within `timeout` seconds."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None

    def run(self, path: Path, engine: str) -> str:
        """The reason for the failure of the case stored in `path`, or an empty string."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "TVM_NUM_THREADS": "1"},
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([str(path), engine]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return self._failed("crash")
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(self._timeout):
                return self._failed(f"no answer within {self._timeout:g} s")
        line = self._process.stdout.readline()
        return json.loads(line) if line else self._failed("crash")

    def _failed(self, reason: str) -> str:
        self.close()
        return reason

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _serve() -> int:
    """The worker's side: a path and an engine per line in, a reason per line out."""
    answers = os.fdopen(os.dup(1), "w")
    # Whatever the converters print must not end up among the answers.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        path, engine = json.loads(line)
        with open(path, "rb") as file:
            case = pickle.load(file)
        answers.write(json.dumps(run_case(case, engine)) + "\n")
        answers.flush()
    return 0


def run_all(
    cases: Sequence[Case],
    engines: Sequence[str],
    jobs: int,
    timeout: float,
    progress: Callable[[int, int], None],
) -> list[Result]:
    """Run every case on every engine with `jobs` workers."""
    from concurrent.futures import ThreadPoolExecutor
    from queue import SimpleQueue

    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for number, case in enumerate(cases):
            paths[case.name] = Path(folder) / f"{number}.pickle"
            paths[case.name].write_bytes(pickle.dumps(case))
        workers: SimpleQueue[Worker] = SimpleQueue()
        pool_workers = [Worker(timeout) for _ in range(jobs)]
        for worker in pool_workers:
            workers.put(worker)

        def run(task: tuple[str, str]) -> Result:
            worker = workers.get()
            try:
                return Result(*task, worker.run(paths[task[0]], task[1]))
            finally:
                workers.put(worker)

        tasks = [(case.name, engine) for engine in engines for case in cases]
        results = []
        try:
            with ThreadPoolExecutor(jobs) as pool:
                for result in pool.map(run, tasks):
                    results.append(result)
                    progress(len(results), len(tasks))
        finally:
            for worker in pool_workers:
                worker.close()
    return results


def report(results: Sequence[Result], engines: Sequence[str]) -> Iterator[str]:
    """Lines: the score of each engine, then our failures grouped by reason."""
    for engine in engines:
        mine = [result for result in results if result.engine == engine]
        passed = sum(result.passed for result in mine)
        yield f"{engine}: {passed} of {len(mine)} ({100 * passed / max(len(mine), 1):.1f} %)"
    groups: dict[str, list[str]] = {}
    for result in results:
        if result.engine == engines[0] and not result.passed:
            groups.setdefault(_group(result.reason), []).append(result.name)
    counts = Counter({reason: len(names) for reason, names in groups.items()})
    for reason, count in counts.most_common():
        yield f"{count:5}  {reason}"
        yield f"         {', '.join(groups[reason][:6])}{' ...' if count > 6 else ''}"


def _group(reason: str) -> str:
    """`reason` without what is particular to one test."""
    for prefix in ("shape:", "dtype:"):
        if reason.startswith(prefix):
            return prefix[:-1] + " differs"
    words = [word for word in reason.split() if not word.startswith(("test_", "'"))]
    return " ".join(words)[:110]


def main() -> int:
    """Print the scores; exit status 1 if fewer than `--require` per cent of the tests pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, help="run only that many tests, evenly spread")
    parser.add_argument("--match", default="", help="run only tests with this in their name")
    parser.add_argument("--json", type=Path, help="also write all results to this file")
    parser.add_argument("--no-stock", action="store_true", help="leave stock TVM out")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds per test")
    parser.add_argument("--require", type=float, default=0.0, help="least pass rate in per cent")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options: Any = parser.parse_args()
    if options.worker:
        return _serve()
    cases = [case for case in static_float_cases() if options.match in case.name]
    if options.limit and options.limit < len(cases):
        cases = [cases[i * len(cases) // options.limit] for i in range(options.limit)]
    engines = ENGINES[:1] if options.no_stock else ENGINES
    start = time.monotonic()

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty() or done % 100 == 0:
            seconds = time.monotonic() - start
            left = seconds / done * (total - done)
            print(f"{done}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)

    results = run_all(cases, engines, options.jobs, options.timeout, progress)
    print("\n".join(report(results, engines)))
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    passed = sum(result.passed for result in results if result.engine == "ours")
    return int(100 * passed < options.require * len(cases))


if __name__ == "__main__":
    sys.exit(main())
