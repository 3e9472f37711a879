"""Whole-model latency, untuned float32, beside ONNX Runtime and OpenVINO.

Batch 1; every model's contestants take turns in bursts. The ratio is the faster
peer's median over the module's: above 1 the module is ahead. Run as
`python benchmarks/latency.py [--runs 60] [--threads 2] [--json FILE] [NAME ...]`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

from topologies import write
from zoo import CACHE, MODELS, find_model

from tinsmith import CompileConfig, compile_to
from tinsmith.compiler.evaluate.bench import BenchReport, bench

# Real models, and how their users call them where that is not what `models` tries.
REAL = {
    "opennsfw": {},
    "ppocr-det": {"x": (1, 3, 640, 640)},
    "minilm-l3": {},
}
GEOMETRIC_MEAN_BAR, WORST_BAR = 0.9, 0.6


def find(cache: Path) -> dict[str, tuple[Path, dict[str, tuple[int, ...]]]]:
    """The ONNX file and the input shapes of every model, by name."""
    found: dict[str, tuple[Path, dict[str, tuple[int, ...]]]] = {
        name: (path, {}) for name, path in write(cache / "topologies").items()
    }
    for model in MODELS:
        if model.name in REAL:
            path = find_model(model, None, cache)
            if path is not None:
                found[model.name] = (path, REAL[model.name] or dict(model.shapes))
    return found


def ratio(report: BenchReport) -> float:
    """The faster peer's median over the module's."""
    peers = [timing.median for timing in report.timings[1:]]
    return min(peers) / report.module.median if peers else math.nan


def main() -> int:
    """Print the table; exit status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models to time (default: all)")
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--target", default="native")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    results: dict[str, dict[str, object]] = {}
    ratios: list[float] = []
    header = f"{'model':14}{'Tinsmith':>10}{'ORT':>10}{'OpenVINO':>10}{'ratio':>8}"
    print(header + f"{'compile s':>11}{'MiB':>8}", flush=True)
    for name, (model, shapes) in find(options.cache).items():
        if options.names and name not in options.names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            config = CompileConfig(target=options.target, shapes=shapes, tuned=False)
            compiled = compile_to(model, Path(folder) / "module", config=config)
            report = bench(compiled.path, model, options.runs, options.threads)
        medians = {timing.label: timing.median for timing in report.timings}
        ratios.append(ratio(report))
        seconds = sum(compiled.seconds.values())
        results[name] = {
            **report.to_dict(),
            "ratio": ratios[-1],
            "compile_seconds": seconds,
            "size_bytes": compiled.size_bytes,
            "peak_memory_bytes": compiled.peak_memory_bytes,
        }
        print(
            f"{name:14}"
            + "".join(
                f"{medians.get(label, math.nan):>10.3f}"
                for label in ("Tinsmith", "ONNX Runtime", "OpenVINO")
            )
            + f"{ratios[-1]:>8.2f}{seconds:>11.1f}{compiled.size_bytes / 2**20:>8.1f}",
            flush=True,
        )
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(
        f"geometric mean {mean:.2f} (bar {GEOMETRIC_MEAN_BAR}), "
        f"worst {min(ratios):.2f} (bar {WORST_BAR})"
    )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    return int(not (mean >= GEOMETRIC_MEAN_BAR and min(ratios) >= WORST_BAR))


if __name__ == "__main__":
    sys.exit(main())
