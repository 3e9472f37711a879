"""What tuning is worth: whole models untuned and tuned, beside ONNX Runtime and OpenVINO.

Each model gets a tuning job of its own from an empty log, and the same job again, which should
spend no trial. Untuned module, tuned module and peers then take turns. `gain` is the untuned
median over the tuned, `ratio` the faster peer's over the tuned: above 1 the tuned module is ahead.
Run as `python benchmarks/tune.py [--minutes 10] [--models resnet18 ...] [--log DIR] [--json FILE]`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from latency import find
from zoo import CACHE

from tinsmith import CompileConfig, QuantizationConfig, TuneOptions, compile_to, tune
from tinsmith.compiler.evaluate.bench import bench

DEFAULT_MODELS = ("resnet18", "resnet50", "mobilenetv2", "minilm-l3")
GAIN_BAR, PEERS_BAR, SECOND_RUN_SECONDS = 1.10, 1.05, 10.0


def geometric_mean(values: Sequence[float]) -> float:
    """NaN if there are none."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def measure(
    model: Path, config: CompileConfig, options: TuneOptions, runs: int
) -> dict[str, object]:
    """One model: tune, tune again, compile both ways, and race them with the peers."""
    report = tune(model, config=config, options=replace(options, fresh=True))
    begin = time.perf_counter()
    again = tune(model, config=config, options=options)
    again_seconds = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        built = {
            name: compile_to(
                model,
                Path(folder) / name,
                config=config.with_options(
                    log=options.log, tuned=name == "tuned", runner=False, static_library=False
                ),
            )
            for name in ("untuned", "tuned")
        }
        threads = config.threads or 2
        raced = bench(
            built["tuned"].path,
            model,
            runs,
            threads,
            further={"untuned": ("tinsmith", built["untuned"].path)},
        )
    medians = {timing.label: timing.median for timing in raced.timings}
    tuned, untuned = raced.module.median, medians.pop("untuned")
    peers = [median for label, median in medians.items() if label != raced.module.label]
    return {
        "untuned_ms": untuned,
        "tuned_ms": tuned,
        "gain": untuned / tuned,
        "peers_ms": {k: v for k, v in medians.items() if k != raced.module.label},
        "ratio": min(peers) / tuned if peers else math.nan,
        "trials": report.trials,
        "kept": report.kept,
        "overhead": report.overhead,
        "seconds": report.seconds,
        "second_run": {"trials": again.trials, "seconds": again_seconds},
        "coverage": built["tuned"].coverage,
        "notes": list(report.notes),
    }


def main() -> int:
    """Print the table; exit status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(DEFAULT_MODELS))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--trials", type=int, default=160, help="most for one kernel")
    parser.add_argument("--strategy", default="model", help="or random")
    parser.add_argument("--quantize", help="int8: tune the quantised models (random calibration)")
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--log", type=Path, help="keep the records there (default: nowhere)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    quantization = None
    if arguments.quantize:
        quantization = QuantizationConfig(format=arguments.quantize, calibration="random")
    results: dict[str, dict[str, object]] = {}
    header = f"{'model':14}{'untuned':>9}{'tuned':>9}{'gain':>7}{'peer':>9}{'ratio':>7}"
    print(header + f"{'trials':>8}{'kept':>6}{'overhead':>9}{'again':>8}", flush=True)
    for name, (model, shapes) in find(arguments.cache).items():
        if name not in arguments.models:
            continue
        config = CompileConfig(shapes=shapes, threads=arguments.threads, quantization=quantization)
        with tempfile.TemporaryDirectory() as empty:
            options = TuneOptions(
                minutes=arguments.minutes,
                trials=arguments.trials,
                strategy=arguments.strategy,
                log=arguments.log or Path(empty),
            )
            row = results[name] = measure(model, config, options, arguments.runs)
        again = row["second_run"]
        assert isinstance(again, dict)
        peer = float(str(row["ratio"])) * float(str(row["tuned_ms"]))
        print(
            f"{name:14}{row['untuned_ms']:>9.3f}{row['tuned_ms']:>9.3f}{row['gain']:>7.3f}"
            f"{peer:>9.3f}{row['ratio']:>7.2f}{row['trials']:>8}{row['kept']:>6}"
            f"{row['overhead']:>9.0%}{again['seconds']:>6.1f} s",
            flush=True,
        )
    gains = [float(str(row["gain"])) for row in results.values()]
    ratios = [float(str(row["ratio"])) for row in results.values()]
    print(f"geometric means: gain {geometric_mean(gains):.3f}, ratio {geometric_mean(ratios):.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    met = geometric_mean(gains) >= GAIN_BAR and min(gains, default=0.0) >= 1.0
    met = met and (quantization is not None or geometric_mean(ratios) >= PEERS_BAR)
    for row in results.values():
        again = row["second_run"]
        assert isinstance(again, dict)
        met = met and again["trials"] == 0 and again["seconds"] <= SECOND_RUN_SECONDS
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
