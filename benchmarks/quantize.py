"""Quantised latency beside ONNX Runtime and OpenVINO, and accuracy on labelled photographs.

Latency: topologies with random weights, untuned, batch 1; in int8 the peers run the file that
ONNX Runtime's `quantize_static` makes (Q/DQ, a scale per channel), and OpenVINO also the one that
NNCF makes if it is installed; in bf16, where the models of `latency.py` are added, OpenVINO runs
the float model with that inference precision. Accuracy: models of --models-dir, photographs of
--data-dir (file name = class index), CIFAR-10 of --cifar-dir. Compressed weights: see
`compressed_weights.py`.
Run as `python benchmarks/quantize.py [--runs 60] [--threads 2] [--json FILE]`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import math
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from compressed_weights import cifar_images, compressed_weights
from latency import find
from topologies import IMAGE, write
from zoo import CACHE

import tinsmith
from tinsmith.compiler.evaluate.bench import bench

# name, file, preprocessing of the labelled models
LABELLED = {
    "mobilenetv2": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "efficientnet_lite0": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
}
# of pixels in 0..255, red, green, blue
CALIBRATION_SAMPLES = 100
# `tune.py` tells what the records are worth.
UNTUNED = {"runner": False, "tuned": False}


def quantize_with_onnxruntime(model: Path, output: Path) -> Path:
    """The same model as ONNX Runtime quantises it statically, written once."""
    if output.exists():
        return output
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            random = np.random.default_rng(0)
            self._samples = iter(
                [{"input": random.standard_normal(IMAGE).astype("float32")} for _ in range(4)]
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._samples, None)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(
            str(model),
            str(output),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return output


def quantize_with_nncf(model: Path, output: Path) -> Path | None:
    """The same model as NNCF quantises it for OpenVINO, written once; None without NNCF."""
    if output.exists():
        return output
    if importlib.util.find_spec("nncf") is None:
        print(
            "NNCF is not installed (pip install 'tinsmith[nncf]'): "
            "OpenVINO runs ONNX Runtime's file only"
        )
        return None
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    graph = openvino.Core().read_model(model)
    graph.reshape(list(IMAGE))
    random = np.random.default_rng(0)
    data = [random.standard_normal(IMAGE).astype("float32") for _ in range(8)]
    quantized = nncf.quantize(
        graph, nncf.Dataset(data), preset=nncf.QuantizationPreset.MIXED, subset_size=len(data)
    )
    openvino.save_model(quantized, output)
    return output


def latency(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The latency table: int8 against the peers' int8 and our own float32."""
    results: dict[str, dict[str, float]] = {}
    print(
        f"{'model':14}{'float32':>10}{'int8':>9}{'ORT':>9}{'OpenVINO':>10}{'NNCF':>8}"
        f"{'vs ORT':>8}{'vs OV':>8}{'vs f32':>8}{'compile s':>11}{'MiB':>7}",
        flush=True,
    )
    for name, model in write(options.cache / "topologies").items():
        peer_model = quantize_with_onnxruntime(model, model.with_name(f"{name}_int8.onnx"))
        nncf_model = quantize_with_nncf(model, model.with_name(f"{name}_nncf.xml"))
        further = {"NNCF": ("openvino", nncf_model)} if nncf_model is not None else None
        with tempfile.TemporaryDirectory() as folder:
            quantization = tinsmith.QuantizationConfig(calibration="random", samples=8)
            integer = tinsmith.compile_to(
                model, Path(folder) / "int8", quantization=quantization, **UNTUNED
            )
            exact = tinsmith.compile_to(model, Path(folder) / "float", **UNTUNED)
            report = bench(integer.path, peer_model, options.runs, options.threads, further=further)
            float_report = bench(exact.path, None, options.runs, options.threads)
        medians = {timing.label: timing.median for timing in report.timings}
        ours = medians["Tinsmith"]
        results[name] = {
            "float32_ms": float_report.module.median,
            "int8_ms": ours,
            "onnxruntime_ms": medians.get("ONNX Runtime", math.nan),
            "openvino_ms": medians.get("OpenVINO", math.nan),
            "nncf_ms": medians.get("NNCF", math.nan),
            "compile_seconds": sum(integer.seconds.values()),
            "size_bytes": integer.size_bytes,
            "float_size_bytes": exact.size_bytes,
        }
        row = results[name]
        row["best_openvino_ms"] = float(np.nanmin([row["openvino_ms"], row["nncf_ms"]]))
        print(
            f"{name:14}{row['float32_ms']:>10.3f}{ours:>9.3f}{row['onnxruntime_ms']:>9.3f}"
            f"{row['openvino_ms']:>10.3f}{row['nncf_ms']:>8.3f}"
            f"{row['onnxruntime_ms'] / ours:>8.2f}{row['best_openvino_ms'] / ours:>8.2f}"
            f"{row['float32_ms'] / ours:>8.2f}"
            f"{row['compile_seconds']:>11.1f}{integer.size_bytes / 2**20:>7.1f}",
            flush=True,
        )
    for peer in ("onnxruntime", "best_openvino"):
        ratios = [row[f"{peer}_ms"] / row["int8_ms"] for row in results.values()]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"geometric mean against {peer}: {mean:.2f}, worst {min(ratios):.2f}")
    return results


def short_float(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The latency table of bfloat16, against OpenVINO in bfloat16 and our own float32."""
    results: dict[str, dict[str, float]] = {}
    print(
        f"{'model':14}{'float32':>10}{'bf16':>9}{'OpenVINO':>10}{'vs OV':>8}{'vs f32':>8}"
        f"{'SQNR dB':>9}{'compile s':>11}{'MiB':>7}",
        flush=True,
    )
    for name, (model, shapes) in find(options.cache).items():
        with tempfile.TemporaryDirectory() as folder:
            quantization = tinsmith.QuantizationConfig(format="bf16")
            settings = {"shapes": shapes, **UNTUNED}
            short = tinsmith.compile_to(
                model, Path(folder) / "bf16", quantization=quantization, **settings
            )
            exact = tinsmith.compile_to(model, Path(folder) / "float", **settings)
            report = bench(short.path, model, options.runs, options.threads, precision="bfloat16")
            float_report = bench(exact.path, None, options.runs, options.threads)
        if short.quantization is None:
            raise ValueError(f"{name} was not quantised")
        medians = {timing.label: timing.median for timing in report.timings}
        row = results[name] = {
            "float32_ms": float_report.module.median,
            "bf16_ms": medians["Tinsmith"],
            "openvino_ms": medians.get("OpenVINO", math.nan),
            "output_sqnr_db": short.quantization.output_sqnr_db,
            "compile_seconds": sum(short.seconds.values()),
            "size_bytes": short.size_bytes,
        }
        ours = row["bf16_ms"]
        print(
            f"{name:14}{row['float32_ms']:>10.3f}{ours:>9.3f}{row['openvino_ms']:>10.3f}"
            f"{row['openvino_ms'] / ours:>8.2f}{row['float32_ms'] / ours:>8.2f}"
            f"{row['output_sqnr_db']:>9.1f}{row['compile_seconds']:>11.1f}"
            f"{row['size_bytes'] / 2**20:>7.1f}",
            flush=True,
        )
    ratios = [row["openvino_ms"] / row["bf16_ms"] for row in results.values()]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(f"geometric mean against openvino in bf16: {mean:.2f}, worst {min(ratios):.2f}")
    return results


def photographs(
    folder: Path, mean: tuple[float, ...], std: tuple[float, ...]
) -> Iterator[tuple[np.ndarray, int]]:
    """Preprocessed photographs (1, 3, H, W) with their class, in an order that mixes classes."""
    from PIL import Image

    files = sorted(folder.glob("*.jpg"))
    for index in np.random.default_rng(0).permutation(len(files)):
        pixels = np.asarray(Image.open(files[index]).convert("RGB"), np.float32) / 255
        image = (pixels - np.float32(mean)) / np.float32(std)
        yield (
            np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32),
            int(files[index].stem),
        )


def labelled_sets(
    options: argparse.Namespace,
) -> Iterator[tuple[str, Path, np.ndarray, Iterable[tuple[np.ndarray, int]]]]:
    """Name, model file, samples to calibrate with, and labelled samples to evaluate on."""
    if options.data_dir:
        for name, preprocessing in LABELLED.items():
            samples = list(photographs(options.data_dir, **preprocessing))
            known, fresh = samples[:CALIBRATION_SAMPLES], samples[CALIBRATION_SAMPLES:]
            images = np.concatenate([image for image, _ in known])
            yield name, options.models_dir / f"{name}.onnx", images, fresh
    if options.cifar_dir:
        known, _ = cifar_images(options.cifar_dir / "cifar10_train10k.npz")
        images, labels = cifar_images(options.cifar_dir / "cifar10_test.npz")
        fresh = [(image[None], int(label)) for image, label in zip(images, labels, strict=True)]
        model = options.models_dir / "resnet18_cifar10.onnx"
        yield "resnet18_cifar10", model, known[:CALIBRATION_SAMPLES], fresh


def accuracy(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Top-1 of float32 and int8, and how often they agree, on samples not calibrated with."""
    results: dict[str, dict[str, float]] = {}
    print(f"{'model':20}{'float32 %':>10}{'int8 %':>8}{'agree %':>9}{'images':>8}", flush=True)
    for name, model, known, fresh in labelled_sets(options):
        settings = {"shapes": {"input": (1, *known.shape[1:])}, "runner": False}
        quantization = tinsmith.QuantizationConfig(calibration=known, observer=options.observer)
        with (
            tinsmith.compile(model, quantization=quantization, **settings) as integer,
            tinsmith.compile(model, **settings) as exact,
        ):
            pairs = [
                (int(exact.run([x])[0].argmax()), int(integer.run([x])[0].argmax()), label)
                for x, label in fresh
            ]
        count = len(pairs)
        row = results[name] = {
            "float32": sum(a == label for a, _, label in pairs) / count,
            "int8": sum(b == label for _, b, label in pairs) / count,
            "agreement": sum(a == b for a, b, _ in pairs) / count,
        }
        print(
            f"{name:20}{row['float32'] * 100:>10.2f}{row['int8'] * 100:>8.2f}"
            f"{row['agreement'] * 100:>9.2f}{count:>8}",
            flush=True,
        )
    return results


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--models-dir", type=Path, help="folder with labelled models")
    parser.add_argument("--data-dir", type=Path, help="folder with labelled photographs")
    parser.add_argument("--cifar-dir", type=Path, help="folder with cifar10_{train10k,test}.npz")
    parser.add_argument("--observer", default="percentile")
    parser.add_argument("--only", choices=("latency", "accuracy", "bf16", "weights"))
    parser.add_argument("--images", type=int, default=10_000, help="of CIFAR-10, for weights")
    parser.add_argument("--formats", nargs="*", help="of compressed weights; default: all")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    results: dict[str, object] = {}
    if options.only in (None, "latency"):
        results["latency"] = latency(options)
    if options.only in (None, "bf16"):
        results["bf16"] = short_float(options)
    if options.only in (None, "weights"):
        results["weights"] = compressed_weights(options)
    if options.only in (None, "accuracy") and options.models_dir:
        results["accuracy"] = accuracy(options)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
