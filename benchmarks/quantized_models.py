"""Files that ONNX Runtime has quantised, compiled and compared with ONNX Runtime on them.

Each model is quantised by `quantize_static` in both of its formats and several settings. For
each file: how many convolutions and products compute in integers, on how many elements of
the logits both agree within one quantisation step (the scale of the output tensor), how
often the largest is the same, and both latencies at batch 1. Models and data come from
--models-dir (resnet18_cifar10.onnx, mobilenetv2.onnx) and --data-dir (cifar10_test.npz,
imagenet400/); ResNets with random weights are made here.
Run as `python benchmarks/quantized_models.py --models-dir DIR --data-dir DIR [NAME ...]`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from models import CACHE
from quantize import photographs
from topologies import IMAGE, write

import compiler
from compiler.evaluate.bench import bench
from compiler.module.manifest import Manifest

CALIBRATION = 32
_CIFAR_MEAN, _CIFAR_STD = (125.307, 122.961, 113.8575), (62.9850, 62.0925, 66.7080)
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_PRODUCTS = ("convolution", "depthwise", "matmul", "conv2d")
# Arithmetics of 8-bit integers that do not say so in their names, and depthwise dtypes.
_INTEGER = frozenset({"vnni", "uint8", "amx"})


@dataclass(frozen=True)
class Setting:
    """Arguments of `quantize_static`."""

    operator_format: bool
    signed: bool
    per_channel: bool
    reduce_range: bool
    unsigned_weights: bool = False

    @property
    def name(self) -> str:
        kinds = ("s8" if self.signed else "u8") + ("u8" if self.unsigned_weights else "s8")
        parts = ["QOperator" if self.operator_format else "QDQ", kinds]
        parts.append("channel" if self.per_channel else "tensor")
        return " ".join([*parts, "reduced"] if self.reduce_range else parts)


SETTINGS = [
    Setting(operator_format, signed, per_channel, reduce_range)
    for operator_format, signed, per_channel, reduce_range in itertools.product(
        (False, True), repeat=4
    )
] + [Setting(False, False, False, False, True), Setting(True, False, False, False, True)]


@dataclass(frozen=True)
class Row:
    """One file. `off_by` is the largest distance of a logit in steps; latencies in ms."""

    model: str
    setting: str
    integer: int
    products: int
    within_step: float
    off_by: float
    same_top1: float
    exact: float
    samples: int
    ours_ms: float | None
    onnxruntime_ms: float | None


def samples_of(name: str, options: argparse.Namespace) -> Iterator[np.ndarray]:
    """Inputs of batch 1 for a model, without end for those that take noise."""
    if name == "resnet18_cifar10":
        images = np.load(options.data_dir / "cifar10_test.npz")["x"]
        for image in images:
            values = (image.astype(np.float32) - np.float32(_CIFAR_MEAN)) / np.float32(_CIFAR_STD)
            yield np.ascontiguousarray(values.transpose(2, 0, 1)[None])
    elif name == "mobilenetv2":
        for image, _ in photographs(options.data_dir / "imagenet400", **_IMAGENET):
            yield image
    else:
        random = np.random.default_rng(0)
        while True:
            yield random.standard_normal(IMAGE).astype(np.float32)


def quantize(model: Path, output: Path, samples: Sequence[np.ndarray], setting: Setting) -> Path:
    """`model` as ONNX Runtime quantises it, written once."""
    if output.exists():
        return output
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._samples = iter([{"input": sample} for sample in samples])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._samples, None)

    kind, form = quantization.QuantType, quantization.QuantFormat
    output.parent.mkdir(parents=True, exist_ok=True)
    prepared = output.with_name(f"{model.stem}_prepared.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not prepared.exists():
            quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(output),
            Reader(),
            quant_format=form.QOperator if setting.operator_format else form.QDQ,
            per_channel=setting.per_channel,
            reduce_range=setting.reduce_range,
            activation_type=kind.QInt8 if setting.signed else kind.QUInt8,
            weight_type=kind.QUInt8 if setting.unsigned_weights else kind.QInt8,
        )
    return output


def output_step(model: onnx.ModelProto) -> float:
    """The scale with which the first output is quantised; raises ValueError if it is not."""
    known = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    name = model.graph.output[0].name
    while name in producers:
        node = producers[name]
        if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            return float(known[node.input[1]])
        name = node.input[0]
    raise ValueError("the output is not quantised")


def integer_products(manifest: Manifest) -> tuple[int, int]:
    """Calls of convolutions and matrix products: those in integers, and all."""
    counts = [
        (int(kernel["calls"]), "int8" in kernel["arithmetic"] or kernel["arithmetic"] in _INTEGER)
        for kernel in manifest.kernels
        if any(word in kernel["name"] for word in _PRODUCTS)
    ]
    return sum(calls for calls, integer in counts if integer), sum(calls for calls, _ in counts)


def compare(name: str, setting: Setting, path: Path, options: argparse.Namespace) -> Row:
    """Compile one file and run it beside ONNX Runtime."""
    import onnxruntime

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = options.threads
    session = onnxruntime.InferenceSession(
        str(path), session_options, providers=["CPUExecutionProvider"]
    )
    step = output_step(onnx.load(path))
    within = exact = same = total = 0
    largest = 0.0
    samples = list(
        itertools.islice(samples_of(name, options), CALIBRATION, CALIBRATION + options.samples)
    )
    with tempfile.TemporaryDirectory() as folder:
        report = compiler.compile_to(
            path, Path(folder) / "m", runner=False, static_library=False, golden=False
        )
        with compiler.load(report.path, threads=options.threads) as module:
            for sample in samples:
                (expected,) = session.run(None, {"input": sample})
                (actual,) = module.run([sample])
                # Whole steps apart; floats of the same code may differ in the last bit.
                apart = np.abs(actual.astype(np.float64) - expected) / step
                within += int((apart <= 1.001).sum())
                exact += int((apart <= 1e-3).sum())
                largest = max(largest, float(apart.max()))
                total += apart.size
                same += int(actual.argmax() == expected.argmax())
        times: dict[str, float] = {}
        if options.runs:
            timed = bench(report.path, path, options.runs, options.threads)
            times = {timing.label: timing.median for timing in timed.timings}
        integer, products = integer_products(report.manifest)
    return Row(
        name, setting.name, integer, products, within / total, largest, same / len(samples),
        exact / total, len(samples), times.get("Tinsmith"), times.get("ONNX Runtime"),
    )  # fmt: skip


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models; all by default")
    parser.add_argument("--models-dir", type=Path, help="folder with the trained models")
    parser.add_argument("--data-dir", type=Path, help="folder with the images")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--settings", help="only settings whose name contains this")
    parser.add_argument("--runs", type=int, default=40, help="0 leaves the latency out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    models: dict[str, Path] = {}
    if options.models_dir and options.data_dir:
        models |= {n: options.models_dir / f"{n}.onnx" for n in ("resnet18_cifar10", "mobilenetv2")}
    made = write(options.cache / "topologies")
    models |= {name: made[name] for name in ("resnet18", "resnet50")}
    rows: list[Row] = []
    print(
        f"{'model':18}{'file':28}{'integer':>9}{'<=1 step %':>11}{'equal %':>9}{'worst':>7}"
        f"{'top-1 %':>9}{'ours ms':>9}{'ORT ms':>8}{'times':>7}"
    )
    for name, model in models.items():
        if options.names and name not in options.names:
            continue
        samples = list(itertools.islice(samples_of(name, options), CALIBRATION))
        for setting in SETTINGS:
            if options.settings and options.settings not in setting.name:
                continue
            file = f"{name}_{setting.name.replace(' ', '_')}.onnx"
            path = quantize(model, options.cache / "quantized" / file, samples, setting)
            row = compare(name, setting, path, options)
            rows.append(row)
            timing = ""
            if row.ours_ms and row.onnxruntime_ms:
                timing = f"{row.ours_ms:>9.3f}{row.onnxruntime_ms:>8.3f}"
                timing += f"{row.onnxruntime_ms / row.ours_ms:>7.2f}"
            print(
                f"{name:18}{row.setting:28}{f'{row.integer}/{row.products}':>9}"
                f"{row.within_step * 100:>11.3f}{row.exact * 100:>9.2f}{row.off_by:>7.1f}"
                f"{row.same_top1 * 100:>9.1f}{timing}",
                flush=True,
            )
    if options.json:
        figures: list[dict[str, Any]] = [asdict(row) for row in rows]
        options.json.write_text(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
