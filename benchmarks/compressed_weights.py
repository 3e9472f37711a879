"""Modules whose weights alone have few bits: accuracy, size and latency beside float32.

Three tables: ResNet-18 on the test images of CIFAR-10, if --models-dir has `resnet18_cifar10.onnx`
and --cifar-dir `cifar10_test.npz` and `cifar10_train10k.npz` (x: uint8 [N, 32, 32, 3], y: classes);
matrix products bound by memory or by arithmetic; and a sentence encoder on random tokens.
Part of benchmarks/quantize.py (`--only weights`).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from zoo import MODELS, find_model

import tinsmith
from tinsmith.compiler.quantization.config import WEIGHT_FORMATS

CIFAR_MEAN = np.float32([125.307, 122.961, 113.8575])
CIFAR_STD = np.float32([62.9850, 62.0925, 66.7080])
CALIBRATION_IMAGES = 256
# Rows, depth and columns of products: one row is bound by memory, many by arithmetic.
PRODUCTS = ((1, 4096, 4096), (8, 2048, 2048), (128, 1024, 1024))
SENTENCES = 20
_SECONDS = 3.0

Model = str | Path | onnx.ModelProto
Table = dict[str, dict[str, float]]


@contextmanager
def modules(
    model: Model, formats: Sequence[str], calibration: object = None, **options: object
) -> Iterator[dict[str, tinsmith.Module]]:
    """The model compiled in float32 (as `float32`) and in each of `formats`."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, tinsmith.Module] = {}
        for name in ("float32", *formats):
            quantization = (
                None
                if name == "float32"
                else tinsmith.QuantizationConfig(format=name, calibration=calibration)
            )
            report = tinsmith.compile_to(
                model,
                Path(folder) / name,
                quantization=quantization,
                runner=False,
                static_library=False,
                **options,
            )
            found[name] = tinsmith.load(report.path)
        try:
            yield found
        finally:
            for module in found.values():
                module.close()


def size_of(module: tinsmith.Module) -> int:
    """Bytes of the library and of the weights beside it."""
    files = module.manifest.files
    return sum(files[name].bytes for name in ("model.so", "weights.bin") if name in files)


def latencies(
    found: Mapping[str, tinsmith.Module], inputs: Sequence[np.ndarray]
) -> dict[str, float]:
    """Median milliseconds of each module, run in turns."""
    times: dict[str, list[float]] = {name: [] for name in found}
    deadline = time.perf_counter() + _SECONDS
    while time.perf_counter() < deadline:
        for name, module in found.items():
            for _ in range(3):
                begin = time.perf_counter()
                module.run(inputs)
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) * 1e3 for name, values in times.items()}


def cifar_images(archive: Path, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images, normalised `[N, 3, 32, 32]`, and their classes: all, or `count` evenly spaced."""
    with np.load(archive) as stored:
        total = len(stored["x"])
        chosen = np.arange(count or total) * total // (count or total)
        pixels, classes = stored["x"][chosen], stored["y"][chosen].astype(int).ravel()
    normalised = (pixels.astype(np.float32) - CIFAR_MEAN) / CIFAR_STD
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)), classes


def classification(options: argparse.Namespace, formats: Sequence[str]) -> Table:
    """Top-1, size and latency of ResNet-18 on CIFAR-10."""
    model = options.models_dir / "resnet18_cifar10.onnx"
    floats = sum(4 * int(np.prod(tensor.dims)) for tensor in onnx.load(model).graph.initializer)
    seen, _ = cifar_images(options.cifar_dir / "cifar10_train10k.npz", CALIBRATION_IMAGES)
    pixels, classes = cifar_images(options.cifar_dir / "cifar10_test.npz", options.images)
    results: Table = {}
    shapes = {"input": (1, 3, 32, 32)}
    with modules(model, formats, seen, shapes=shapes, threads=options.threads) as found:
        medians = latencies(found, [pixels[:1]])
        chosen = {
            name: np.array([int(module.run([image[None]])[0].argmax()) for image in pixels])
            for name, module in found.items()
        }
        for name, module in found.items():
            results[name] = {
                "top1": 100 * float((chosen[name] == classes).mean()),
                "agreement": 100 * float((chosen[name] == chosen["float32"]).mean()),
                "bytes": size_of(module),
                "share_of_float_weights": size_of(module) / floats,
                "ms": medians[name],
                "ratio": medians[name] / medians["float32"],
            }
    print(f"ResNet-18, {len(pixels)} images of CIFAR-10")
    print(f"{'':18}{'top-1 %':>9}{'agree %':>9}{'MiB':>8}{'of f32':>8}{'ms':>9}{'ratio':>7}")
    for name, row in results.items():
        print(
            f"{name:18}{row['top1']:>9.2f}{row['agreement']:>9.2f}{row['bytes'] / 2**20:>8.2f}"
            f"{row['share_of_float_weights']:>8.3f}{row['ms']:>9.3f}{row['ratio']:>7.2f}",
            flush=True,
        )
    return results


def product(rows: int, depth: int, columns: int) -> onnx.ModelProto:
    """A model of one matrix product by constant normal weights."""
    weights = np.random.default_rng(0).standard_normal((depth, columns), np.float32)
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", float32, [rows, depth])],
        [helper.make_tensor_value_info("y", float32, [rows, columns])],
        [onnx.numpy_helper.from_array(weights / np.float32(np.sqrt(depth)), "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def products(options: argparse.Namespace, formats: Sequence[str]) -> Table:
    """Latency of matrix products as a ratio to float32."""
    results: Table = {}
    print(f"{'product':18}{'float32 ms':>12}" + "".join(f"{name:>17}" for name in formats))
    for shape in PRODUCTS:
        data = np.random.default_rng(1).standard_normal(shape[:2]).astype(np.float32)
        with modules(product(*shape), formats, threads=options.threads) as found:
            medians = latencies(found, [data])
        name = "x".join(map(str, shape))
        results[name] = medians
        ratios = "".join(f"{medians[form] / medians['float32']:>17.2f}" for form in formats)
        print(f"{name:18}{medians['float32']:>12.3f}{ratios}", flush=True)
    return results


def sentences(options: argparse.Namespace, formats: Sequence[str]) -> Table:
    """Latency, size and cosine of the embeddings of a sentence encoder on random tokens."""
    known = next(model for model in MODELS if model.name == "minilm-l3")
    path = find_model(known, options.models_dir, options.cache)
    if path is None:
        return {}
    random = np.random.default_rng(0)
    results: Table = {}
    with modules(path, formats, shapes=known.shapes, threads=options.threads) as found:
        entries = found["float32"].manifest.inputs
        samples = [
            [
                np.ones(t.shape, t.dtype)
                if "mask" in t.name
                else random.integers(0, 2 if "type" in t.name else 30000, t.shape).astype(t.dtype)
                for t in entries
            ]
            for _ in range(SENTENCES)
        ]
        medians = latencies(found, samples[0])
        # The last output is the embedding of the sentence, those before are of its tokens.
        vectors = {
            name: [np.array(module.run(sample)[-1], np.float64).ravel() for sample in samples]
            for name, module in found.items()
        }
        for name, module in found.items():
            pairs = zip(vectors[name], vectors["float32"], strict=True)
            cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in pairs]
            results[name] = {
                "cosine": float(np.mean(cosines)),
                "bytes": size_of(module),
                "ms": medians[name],
                "ratio": medians[name] / medians["float32"],
            }
    print(f"{known.name:18}{'cosine':>9}{'MiB':>8}{'ms':>9}{'ratio':>7}")
    for name, row in results.items():
        print(
            f"{name:18}{row['cosine']:>9.5f}{row['bytes'] / 2**20:>8.2f}{row['ms']:>9.3f}"
            f"{row['ratio']:>7.2f}",
            flush=True,
        )
    return results


def compressed_weights(options: argparse.Namespace) -> dict[str, Table]:
    """All tables that the given folders allow."""
    formats = options.formats or list(WEIGHT_FORMATS)
    results = {"products": products(options, formats), "sentences": sentences(options, formats)}
    if options.models_dir and options.cifar_dir:
        results["classification"] = classification(options, formats)
    return results
