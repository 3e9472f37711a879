"""Models stored in float16 beside the same in float32: latency, size, and ONNX Runtime's latency.

Files are converted by ONNX Runtime's own tool, inputs and outputs stay float32. The modules take
turns in one process; a ratio above 1 says that float16 is slower. Run as
`python benchmarks/half_precision.py [--threads 2] [NAME ...]`; exit status 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import onnx
from compressed_weights import latencies, size_of
from latency import find
from onnxruntime.transformers.float16 import convert_float_to_float16
from zoo import CACHE

import tinsmith
from tinsmith.compiler.evaluate.bench import bench
from tinsmith.compiler.evaluate.inputs import random_inputs

# float16 may take so much of float32's time, and so much of its bytes.
TIME_BAR, SIZE_BAR = 1.10, 0.6


def in_half(model: Path, folder: Path) -> Path:
    """`model` with weights and arithmetic in float16."""
    path = folder / "half.onnx"
    loaded = onnx.load(model)
    onnx.save(convert_float_to_float16(loaded, keep_io_types=True), path)
    return path


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models to time (default: all)")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=CACHE)
    options = parser.parse_args()
    missed = False
    print(
        f"{'model':14}{'f32 ms':>9}{'f16 ms':>9}{'ratio':>7}{'size':>7}{'ORT f16':>9}", flush=True
    )
    for name, (model, shapes) in find(options.cache).items():
        if options.names and name not in options.names:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            half = in_half(model, folder)
            modules = {}
            for label, file in (("float32", model), ("float16", half)):
                report = tinsmith.compile_to(
                    file, folder / label, shapes=shapes, threads=options.threads, tuned=False,
                    runner=False, static_library=False,
                )  # fmt: skip
                modules[label] = tinsmith.load(report.path)
            asked = {t.name: (t.shape, t.dtype) for t in modules["float32"].manifest.inputs}
            inputs = random_inputs(asked, {}, seed=0)
            times = latencies(modules, list(inputs.values()))
            sizes = {label: size_of(module) for label, module in modules.items()}
            for module in modules.values():
                module.close()
            peers = bench(folder / "float16", half, options.runs, options.threads).timings
        theirs = next((t.median for t in peers if t.label == "ONNX Runtime"), float("nan"))
        ratio = times["float16"] / times["float32"]
        size = sizes["float16"] / sizes["float32"]
        missed |= ratio > TIME_BAR or size > SIZE_BAR
        print(
            f"{name:14}{times['float32']:>9.2f}{times['float16']:>9.2f}{ratio:>7.2f}{size:>7.2f}"
            f"{theirs:>9.2f}",
            flush=True,
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
