"""A quantised transformer beside ONNX Runtime and OpenVINO: latency, and how close its output is.

MiniLM-L3 of a package (see `models`), untuned, batch 1, 128 tokens. The peers run the files that
ONNX Runtime's `quantize_static` (Q/DQ, a scale per channel, products only) and `quantize_dynamic`
make. Tokens are random unless --tokens names an .npz with `input_ids` and `attention_mask`
[N, 1, 128]; the first 100 calibrate, the others are compared with float32.
Run as `python benchmarks/transformer.py [--tokens FILE.npz] [--runs 60] [--threads 2]`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from zoo import CACHE, MODELS, find_model

import tinsmith
from tinsmith.compiler.evaluate.bench import bench

CALIBRATION_SAMPLES = 100
Samples = dict[str, np.ndarray]
Run = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


def tokens(path: Path | None, shape: tuple[int, ...]) -> Samples:
    """Samples `[N, 1, tokens]` int64 of both inputs."""
    if path is not None:
        with np.load(path) as archive:
            return {name: archive[name] for name in ("input_ids", "attention_mask")}
    random = np.random.default_rng(0)
    ids = random.integers(1000, 30000, (200, *shape))
    lengths = random.integers(8, shape[-1] + 1, (200, 1, 1))
    return {"input_ids": ids, "attention_mask": (np.arange(shape[-1]) < lengths).astype("int64")}


def quantized_by_onnxruntime(model: Path, samples: Samples, folder: Path) -> dict[str, Path]:
    """Its static and its dynamic file of a model with fixed shapes."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._samples = iter(
                [{k: v[i] for k, v in samples.items()} for i in range(CALIBRATION_SAMPLES)]
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._samples, None)

    prepared, static, dynamic = (folder / f"{n}.onnx" for n in ("prepared", "static", "dynamic"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quant_pre_process(str(model), str(prepared))
        quantize_static(
            str(prepared),
            str(static),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
        )
        quantize_dynamic(str(prepared), str(dynamic), per_channel=True, weight_type=QuantType.QInt8)
    return {"static": static, "dynamic": dynamic}


def embeddings(run: Run, samples: Samples) -> np.ndarray:
    """The last output, a vector for each sample that was not calibrated with, float64."""
    names = list(samples)
    count = len(samples[names[0]])
    rows = [
        np.array(run([samples[name][i] for name in names])[-1], np.float64).ravel()
        for i in range(CALIBRATION_SAMPLES, count)
    ]
    return np.array(rows)


def cosine(exact: np.ndarray, other: np.ndarray) -> float:
    """The mean cosine between rows."""
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(other, axis=1)
    return float(((exact * other).sum(1) / lengths).mean())


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Median milliseconds and cosine of each contestant."""
    known = next(model for model in MODELS if model.name == "minilm-l3")
    path = find_model(known, None, options.cache)
    if path is None:
        raise FileNotFoundError("minilm-l3")
    samples = tokens(options.tokens, known.shapes["input_ids"])
    fixed = onnx.load(path)
    for value in fixed.graph.input:
        for axis, extent in enumerate(known.shapes[value.name]):
            value.type.tensor_type.shape.dim[axis].dim_value = extent
    onnx.save(fixed, folder / "fixed.onnx")
    exact = tinsmith.compile_to(folder / "fixed.onnx", folder / "float", runner=False, tuned=False)
    integer = tinsmith.compile_to(
        folder / "fixed.onnx",
        folder / "int8",
        runner=False,
        tuned=False,
        quantization=tinsmith.QuantizationConfig(
            calibration={name: array[:CALIBRATION_SAMPLES] for name, array in samples.items()}
        ),
    )
    peers = quantized_by_onnxruntime(folder / "fixed.onnx", samples, folder)
    with tinsmith.load(exact.path) as module:
        reference = embeddings(module.run, samples)
    with tinsmith.load(integer.path) as module:
        ours = cosine(reference, embeddings(module.run, samples))
    float_report = bench(exact.path, folder / "fixed.onnx", options.runs, options.threads)
    results = {
        f"{timing.label} float32": {"ms": timing.median, "cosine": 1.0}
        for timing in float_report.timings
    }
    for kind, file in peers.items():
        report = bench(integer.path, file, options.runs, options.threads)
        session = onnxruntime.InferenceSession(str(file))
        close = cosine(
            reference,
            embeddings(
                lambda x, s=session: s.run(None, dict(zip(samples, x, strict=True))), samples
            ),
        )
        results.setdefault("Tinsmith int8", {"ms": report.module.median, "cosine": ours})
        for timing in report.timings[1:]:
            results[f"{timing.label} int8 {kind}"] = {"ms": timing.median, "cosine": close}
    return results


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=Path, help="an .npz with real tokens")
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, Path(folder))
    print(f"{'contestant':28}{'ms':>9}{'cosine':>9}")
    for name, row in results.items():
        print(f"{name:28}{row['ms']:>9.3f}{row['cosine']:>9.4f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
