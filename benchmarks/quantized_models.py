"""Files that ONNX Runtime has quantised, compiled and compared with ONNX Runtime on them.

Each model is quantised by `quantize_static` in both of its formats and several settings, and
a transformer by `quantize_dynamic`. For each file: how many convolutions and products compute
in integers, on how many elements of the result both agree within one quantisation step (the
scale of the output tensor; of a float output, 1/255 of its range), how often the largest is
the same, and both latencies at batch 1. `ORT` beside `<=1 step` is ONNX Runtime compared with
itself, its graph optimisations switched off: a network whose codes depend on the last bit of
a float disagrees with every other implementation. Models and data come from --models-dir
(resnet18_cifar10.onnx, mobilenetv2.onnx) and --data-dir (cifar10_test.npz, imagenet400/);
ResNets with random weights are made here, MiniLM comes from its package.
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
from quantize import photographs
from topologies import IMAGE, write
from zoo import CACHE, MODELS, find_model

import tinsmith
from tinsmith.compiler.evaluate.bench import bench
from tinsmith.compiler.module.manifest import Manifest

CALIBRATION = 32
_CIFAR_MEAN, _CIFAR_STD = (125.307, 122.961, 113.8575), (62.9850, 62.0925, 66.7080)
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_PRODUCTS = ("convolution", "depthwise", "matmul", "conv2d")
_TRANSFORMER = "minilm-l3"
_WORDS = 30522
Feed = dict[str, np.ndarray]


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
    """One file. Shares of elements, and the largest distance in steps; latencies in ms.

    `reference_within_step` compares ONNX Runtime with itself, unoptimised.
    """

    model: str
    setting: str
    integer: int
    products: int
    within_step: float
    reference_within_step: float
    exact: float
    off_by: float
    same_top1: float
    samples: int
    ours_ms: float | None
    onnxruntime_ms: float | None

    def line(self) -> str:
        """The row of the table."""
        timing = ""
        if self.ours_ms and self.onnxruntime_ms:
            timing = f"{self.ours_ms:>9.3f}{self.onnxruntime_ms:>8.3f}"
            timing += f"{self.onnxruntime_ms / self.ours_ms:>7.2f}"
        return (
            f"{self.model:18}{self.setting:30}{f'{self.integer}/{self.products}':>8}"
            f"{self.within_step * 100:>11.3f}{self.reference_within_step * 100:>9.3f}"
            f"{self.exact * 100:>9.2f}{self.off_by:>7.1f}{self.same_top1 * 100:>9.1f}{timing}"
        )


def samples_of(name: str, options: argparse.Namespace) -> Iterator[Feed]:
    """Inputs of batch 1 for a model, without end for those that take noise."""
    random = np.random.default_rng(0)
    if name == "resnet18_cifar10":
        images = np.load(options.data_dir / "cifar10_test.npz")["x"]
        for image in images:
            values = (image.astype(np.float32) - np.float32(_CIFAR_MEAN)) / np.float32(_CIFAR_STD)
            yield {"input": np.ascontiguousarray(values.transpose(2, 0, 1)[None])}
    elif name == "mobilenetv2":
        for image, _ in photographs(options.data_dir / "imagenet400", **_IMAGENET):
            yield {"input": image}
    while name == _TRANSFORMER:
        words = random.integers(0, _WORDS, (1, 128))
        yield {"input_ids": words, "attention_mask": np.ones_like(words)}
    while True:
        yield {"input": random.standard_normal(IMAGE).astype(np.float32)}


def quantize(model: Path, output: Path, samples: Sequence[Feed], setting: Setting) -> Path:
    """`model` as ONNX Runtime quantises it, written once."""
    if output.exists():
        return output
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._samples = iter(samples)

        def get_next(self) -> Feed | None:
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


def quantize_dynamically(model: Path, output: Path, unsigned: bool, per_channel: bool) -> Path:
    """`model` with codes for weights, and activations quantised while it runs; written once."""
    from onnxruntime import quantization

    if not output.exists():
        kind = quantization.QuantType.QUInt8 if unsigned else quantization.QuantType.QInt8
        output.parent.mkdir(parents=True, exist_ok=True)
        quantization.quantize_dynamic(model, output, weight_type=kind, per_channel=per_channel)
    return output


def output_step(model: onnx.ModelProto) -> float | None:
    """The scale with which the last output is quantised; None if it is a float."""
    known = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers.get(model.graph.output[-1].name)
    if node is None or node.op_type not in ("DequantizeLinear", "QuantizeLinear"):
        return None
    return float(known[node.input[1]])


def integer_products(manifest: Manifest) -> tuple[int, int]:
    """Calls of convolutions and matrix products: those in integers, and all."""
    counts = [
        (kernel.calls, kernel.arithmetic.endswith(("int8", "vnni", "sdot")))
        for kernel in manifest.kernels
        if any(word in kernel.name for word in _PRODUCTS)
    ]
    return sum(calls for calls, integer in counts if integer), sum(calls for calls, _ in counts)


def last_outputs(path: Path, feeds: Sequence[Feed], threads: int, optimized: bool) -> np.ndarray:
    """The last output for each feed, as ONNX Runtime computes it."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    if not optimized:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    shown = next(iter(feeds[0].values()))
    # What the feeds leave out are the token types of a transformer.
    whole = [{name: feed.get(name, np.zeros_like(shown)) for name in names} for feed in feeds]
    return np.stack([session.run(None, feed)[-1] for feed in whole])


def compare(name: str, setting: str, path: Path, options: argparse.Namespace) -> Row:
    """Compile one file and run it beside ONNX Runtime."""
    end = CALIBRATION + options.samples
    feeds = list(itertools.islice(samples_of(name, options), CALIBRATION, end))
    expected = last_outputs(path, feeds, options.threads, optimized=True)
    plain = last_outputs(path, feeds, options.threads, optimized=False)
    step = output_step(onnx.load(path)) or float(np.ptp(expected)) / 255
    names = [value.name for value in onnx.load(path).graph.input]
    shapes = {n: array.shape for n, array in feeds[0].items() if n in names}
    if name == _TRANSFORMER:
        shapes |= dict.fromkeys(names, (1, 128))
    with tempfile.TemporaryDirectory() as folder:
        report = tinsmith.compile_to(
            path, Path(folder) / "m", runner=False, static_library=False, shapes=shapes
        )
        with tinsmith.load(report.path, threads=options.threads) as module:
            shown = next(iter(feeds[0].values()))
            inputs = [tensor.name for tensor in module.manifest.inputs]
            actual = np.stack(
                [
                    module.run([feed.get(n, np.zeros_like(shown)) for n in inputs])[-1]
                    for feed in feeds
                ]
            )
        times: dict[str, float] = {}
        if options.runs:
            timed = bench(report.path, path, options.runs, options.threads)
            times = {timing.label: timing.median for timing in timed.timings}
        integer, products = integer_products(report.manifest)
    # Whole steps apart; floats of the same code may differ in the last bit.
    apart = np.abs(actual.astype(np.float64) - expected) / step
    itself = np.abs(plain.astype(np.float64) - expected) / step
    top = [array.reshape(len(feeds), -1).argmax(1) for array in (actual, expected)]
    return Row(
        model=name,
        setting=setting,
        integer=integer,
        products=products,
        within_step=float((apart <= 1.001).mean()),
        reference_within_step=float((itself <= 1.001).mean()),
        exact=float((apart <= 1e-3).mean()),
        off_by=float(apart.max()),
        same_top1=float((top[0] == top[1]).mean()),
        samples=len(feeds),
        ours_ms=times.get("Tinsmith"),
        onnxruntime_ms=times.get("ONNX Runtime"),
    )


def files(name: str, model: Path, options: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """The quantised files of a model that were asked for, with the names of their settings."""
    folder = options.cache / "quantized"
    wanted = options.settings or ""
    if name == _TRANSFORMER:
        for unsigned, per_channel in ((False, False), (False, True), (True, False)):
            kinds = "u8u8" if unsigned else "u8s8"
            setting = f"dynamic {kinds} {'channel' if per_channel else 'tensor'}"
            if wanted in setting:
                output = folder / f"{name}_{setting.replace(' ', '_')}.onnx"
                yield setting, quantize_dynamically(model, output, unsigned, per_channel)
        return
    samples = list(itertools.islice(samples_of(name, options), CALIBRATION))
    for static in SETTINGS:
        if wanted in static.name:
            output = folder / f"{name}_{static.name.replace(' ', '_')}.onnx"
            yield static.name, quantize(model, output, samples, static)


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
    transformer = find_model(next(m for m in MODELS if m.name == _TRANSFORMER), None, options.cache)
    if transformer is not None:
        models[_TRANSFORMER] = transformer
    rows: list[Row] = []
    print(
        f"{'model':18}{'file':30}{'integer':>8}{'<=1 step %':>11}{'ORT %':>9}{'equal %':>9}"
        f"{'worst':>7}{'top-1 %':>9}{'ours ms':>9}{'ORT ms':>8}{'times':>7}"
    )
    for name, model in models.items():
        if options.names and name not in options.names:
            continue
        for setting, path in files(name, model, options):
            rows.append(compare(name, setting, path, options))
            print(rows[-1].line(), flush=True)
    if options.json:
        figures: list[dict[str, Any]] = [asdict(row) for row in rows]
        options.json.write_text(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
