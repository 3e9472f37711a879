"""Pruned modules beside the whole ones: latency, parameters, and accuracy on labelled pictures.

ResNet-18 for CIFAR-10 at ratio 0.3 (closed form, and with distillation) and 0.5, in int8, to a goal
in latency beside uniform widths that take as long, and beside Torch-Pruning at the same widths
by the same norm; other networks by what the module makes of the pruned graph. Nothing learns from
labels. --models-dir has `resnet18_cifar10.onnx`, `mobilenetv2.onnx` and `efficientnet_lite0.onnx`,
--data-dir `cifar10_train10k.npz` and `cifar10_test.npz` (x: uint8 [N, 32, 32, 3], y: classes).
Distillation needs torch. With --modules, compiled modules stay in that folder and are measured
again by the next run. Run as `python benchmarks/prune.py --models-dir DIR --data-dir DIR`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import honest_pruning
import numpy as np
import torch_pruning_peer as peer
from compressed_weights import cifar_images
from zoo import CACHE, MODELS, find_model

import tinsmith
from tinsmith.compiler.evaluate.bench import bench
from tinsmith.compiler.pruning.report import PruneReport
from tinsmith.targets.registry import get_target

SHAPES = {"input": (1, 3, 32, 32)}
RATIO = 0.3
SETTINGS = {"runner": False, "static_library": False}
# Uniform ratios that are tried for the latency of a goal in latency.
TRIALS = 5
AGREEMENT_BAR = 1e-4

Row = dict[str, float]
# What a figure has to be at least, or at most.
AT_LEAST, AT_MOST = ("speedup",), ("params", "drop", "size", "off_goal")


@dataclass
class Bench:
    """ResNet-18 with its pictures, and what all tables need of it."""

    options: argparse.Namespace
    modules: Path

    @property
    def model(self) -> Path:
        return self.options.models_dir / "resnet18_cifar10.onnx"

    @cached_property
    def known(self) -> np.ndarray:
        """Training pictures, without their labels."""
        return cifar_images(self.options.data_dir / "cifar10_train10k.npz")[0]

    @cached_property
    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """Test pictures and their classes."""
        return cifar_images(self.options.data_dir / "cifar10_test.npz", self.options.images)

    @cached_property
    def whole(self) -> Path:
        """The module of the whole model."""
        return self.compiled("whole", self.model)

    @cached_property
    def whole_top1(self) -> float:
        return self.top1(self.whole)

    def config(self, **settings: Any) -> tinsmith.PruneConfig:
        """A configuration that learns from some of the training pictures."""
        return tinsmith.PruneConfig(
            calibration=self.known, samples=self.options.samples, **settings
        )

    def distilled(self, **settings: Any) -> tinsmith.PruneConfig:
        """A configuration that then is distilled on all of them, for the minutes allowed."""
        return self.config(
            recovery="distill",
            distill_minutes=self.options.minutes,
            augment=("flip", "crop", "mixup"),
            **settings,
        )

    def compiled(self, name: str, model: Any, **settings: Any) -> Path:
        """The module of that name and configuration, as an earlier run left it or new."""
        parts = [part.to_dict() for part in settings.values()]
        key = json.dumps([parts, self.options.threads], sort_keys=True, default=str)
        path = self.modules / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        if not (path / "manifest.json").exists():
            settings = {"shapes": SHAPES, "threads": self.options.threads, **SETTINGS, **settings}
            tinsmith.compile_to(model, path, **settings)
        return path

    def top1(self, path: Path) -> float:
        """The share of right answers on the test pictures."""
        images, classes = self.test
        with tinsmith.load(path, threads=self.options.threads) as module:
            chosen = [int(module.run([image[None]])[0].argmax()) for image in images]
        return float((np.array(chosen) == classes).mean())

    def speedup(self, path: Path) -> float:
        """How many times as fast as the whole model, both in turns."""
        further = {"whole": ("tinsmith", self.whole)}
        report = bench(path, None, self.options.runs, self.options.threads, further=further)
        return report.timings[1].median / report.module.median

    def row(self, path: Path, **settings: Any) -> Row:
        """All figures of one module; `settings` replace what would be measured."""
        with tinsmith.load(path) as module:
            manifest = module.manifest
        row = {
            "top1": 100 * self.top1(path),
            "speedup": self.speedup(path),
            "size": manifest.deployed_bytes / self.model.stat().st_size,
        }
        if manifest.measured.pruning is not None:
            report = PruneReport.from_dict(manifest.measured.pruning)
            row["params"] = report.params[1] / report.params[0]
            if report.distillation is not None:
                row["epochs"] = report.distillation.epochs
        row |= settings
        row["drop"] = 100 * self.whole_top1 - row["top1"]
        return row

    def can_distil(self) -> bool:
        """Whether torch is here; says so if it is not."""
        found = importlib.util.find_spec("torch") is not None
        if not found:
            print("no distillation: it needs torch (pip install 'tinsmith[torch]')")
        return found


def show(name: str, row: Row, bars: Row | None = None) -> Row:
    """Print one line, and which bars it misses."""
    missed = [
        f"{figure} {row[figure]:.3f} (bar {bar:g})"
        for figure, bar in (bars or {}).items()
        if (row[figure] < bar if figure in AT_LEAST else row[figure] > bar)
    ]
    verdict = f"MISSED {', '.join(missed)}" if missed else "ok" if bars else ""
    if "epochs" in row:
        verdict = f"{verdict} {row['epochs']:.1f} epochs".strip()
    print(
        f"{name:34}{row['top1']:>9.2f}{row['drop']:>7.2f}{row.get('params', math.nan):>8.3f}"
        f"{row['size']:>8.3f}{row['speedup']:>9.2f}  {verdict}",
        flush=True,
    )
    return {**row, "missed": float(len(missed))}


def heading(title: str, bench_: Bench) -> None:
    """Print the columns; top-1 and its drop are in percent and points of the test pictures."""
    print(f"{title}: top-1 of the whole model {100 * bench_.whole_top1:.2f} %")
    columns = f"{'top-1 %':>9}{'drop':>7}{'params':>8}{'size':>8}{'speed-up':>9}"
    print(f"{'':34}{columns}", flush=True)


def ratio(bench_: Bench) -> dict[str, Row]:
    """A ratio of 0.3, in closed form and distilled."""
    heading(f"ratio {RATIO}", bench_)
    path = bench_.compiled("ratio", bench_.model, pruning=bench_.config(ratio=RATIO))
    bars = {"speedup": 1.5, "params": 0.55, "drop": 1.0}
    rows = {"closed form": show("closed form", bench_.row(path), bars)}
    if bench_.can_distil():
        name = f"distilled for {bench_.options.minutes:g} min"
        pruning = bench_.distilled(ratio=RATIO)
        path = bench_.compiled("ratio-distilled", bench_.model, pruning=pruning)
        rows[name] = show(name, bench_.row(path), {**bars, "drop": 0.5})
    return rows


def half(bench_: Bench) -> dict[str, Row]:
    """A ratio of 0.5, distilled."""
    if not bench_.can_distil():
        return {}
    heading("ratio 0.5", bench_)
    name = f"distilled for {bench_.options.minutes:g} min"
    path = bench_.compiled("half", bench_.model, pruning=bench_.distilled(ratio=0.5))
    return {name: show(name, bench_.row(path), {"speedup": 2.5, "drop": 2.0})}


def int8(bench_: Bench) -> dict[str, Row]:
    """A ratio of 0.3 in closed form, then int8; the size is over that of the float32 file."""
    heading(f"ratio {RATIO} and int8", bench_)
    quantization = tinsmith.QuantizationConfig(calibration=bench_.known[:100])
    path = bench_.compiled(
        "int8", bench_.model, pruning=bench_.config(ratio=RATIO), quantization=quantization
    )
    return {"int8": show("closed form, int8", bench_.row(path), {"size": 1 / 7, "drop": 1.0})}


def latency(bench_: Bench) -> dict[str, Row]:
    """A goal in latency, and the uniform ratio that takes as long, both in closed form."""
    goal = bench_.options.latency
    heading(f"latency {goal:g}", bench_)
    path = bench_.compiled("latency", bench_.model, pruning=bench_.config(latency=goal))
    row = bench_.row(path)
    row["off_goal"] = abs(1 / row["speedup"] - goal) / goal
    rows = {"goal": show("latency goal", row, {"off_goal": 0.05})}
    low, high = 0.0, 1.0
    tried: dict[float, float] = {}
    for _ in range(TRIALS):
        # Latency hardly depends on which channels go: weights alone choose here.
        middle = (low + high) / 2 if tried else RATIO
        name = f"trial-{middle:.4f}"
        trial = tinsmith.PruneConfig(ratio=middle)
        tried[middle] = bench_.speedup(bench_.compiled(name, bench_.model, pruning=trial))
        low, high = (middle, high) if tried[middle] < row["speedup"] else (low, middle)
    nearest = min(tried, key=lambda r: abs(tried[r] - row["speedup"]))
    path = bench_.compiled("uniform", bench_.model, pruning=bench_.config(ratio=nearest))
    name = f"uniform, ratio {nearest:.3f}"
    rows["uniform"] = show(name, bench_.row(path))
    ahead = rows["goal"]["top1"] - rows["uniform"]["top1"]
    print(f"the goal in latency is {ahead:+.2f} points ahead at equal latency")
    return rows


def others(bench_: Bench) -> dict[str, Row]:
    """Other networks without data: what the module makes of the pruned graph."""
    print(f"{'model':22}{'params':>8}{'FLOPs':>7}{'groups':>8}{'speed-up':>9}{'difference':>12}")
    rows: dict[str, Row] = {}
    for model in MODELS:
        if model.name not in ("mobilenetv2", "efficientnet-lite0", "minilm-l3"):
            continue
        file = find_model(model, bench_.options.models_dir, bench_.options.cache)
        if file is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            report = tinsmith.compile_to(
                file,
                Path(folder) / "module",
                pruning=tinsmith.PruneConfig(ratio=0.2),
                shapes=model.shapes,
                threads=bench_.options.threads,
                **SETTINGS,
            )
        pruned = report.pruning
        if pruned is None:
            raise ValueError(f"{model.name} was not pruned")
        row = rows[model.name] = {
            "params": pruned.params[1] / pruned.params[0],
            "flops": pruned.flops[1] / pruned.flops[0],
            "groups": sum(group.after < group.before for group in pruned.groups),
            "speedup": pruned.speedup or math.nan,
            "difference": max(difference.relative for difference in report.differences),
        }
        row["missed"] = float(row["difference"] > AGREEMENT_BAR)
        print(
            f"{model.name:22}{row['params']:>8.3f}{row['flops']:>7.3f}{row['groups']:>8.0f}"
            f"{row['speedup']:>9.2f}{row['difference']:>12.1e}  "
            f"{'MISSED' if row['missed'] else 'ok'}",
            flush=True,
        )
    return rows


def torch_pruning(bench_: Bench) -> dict[str, Row]:
    """Torch-Pruning and this project at the same ratio by the same norm, and both distilled."""
    advice = peer.missing()
    if advice:
        print(f"no comparison with Torch-Pruning: {advice}")
        return {}
    heading(f"ratio {RATIO} beside Torch-Pruning", bench_)
    criterion, threads = bench_.options.criterion, bench_.options.threads
    alignment = max(get_target("native").float_lanes, 8)
    begin = time.perf_counter()
    theirs = peer.pruned_by_torch_pruning(
        bench_.model, bench_.known[:1], RATIO, criterion, alignment
    )
    print(f"Torch-Pruning took {time.perf_counter() - begin:.1f} s")
    params = sum(math.prod(t.dims) for t in theirs.graph.initializer) * 4
    share = params / bench_.model.stat().st_size
    path = bench_.compiled(f"torch-pruning-{criterion}", theirs)
    rows = {"Torch-Pruning": show(f"Torch-Pruning, {criterion}", bench_.row(path, params=share))}
    for name, recovery in (("as pruned", "none"), ("closed form", "least-squares")):
        pruning = bench_.config(ratio=RATIO, criterion=criterion, recovery=recovery)
        path = bench_.compiled(f"{criterion}-{recovery}", bench_.model, pruning=pruning)
        rows[name] = show(f"{criterion}, {name}", bench_.row(path))
    if bench_.options.minutes > 0:
        minutes = f"{bench_.options.minutes:g} min"
        config = bench_.distilled(ratio=RATIO, criterion=criterion)
        top1 = peer.distilled_top1(bench_.model, theirs, config, *bench_.test, threads)
        row = {**rows["Torch-Pruning"], "top1": 100 * top1}
        row["drop"] = 100 * bench_.whole_top1 - row["top1"]
        rows["Torch-Pruning distilled"] = show(f"Torch-Pruning, distilled {minutes}", row)
        path = bench_.compiled(f"{criterion}-distilled", bench_.model, pruning=config)
        rows["distilled"] = show(f"{criterion}, distilled {minutes}", bench_.row(path))
    return rows


def honest(bench_: Bench) -> dict[str, Row]:
    """What is reported from few samples, beside what is true of others."""
    options = bench_.options
    honest_pruning.heading()
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for case in honest_pruning.PHOTOGRAPHS if options.photographs is not None else ():
            images, classes = honest_pruning.photographs(options.photographs, case)
            others = np.arange(len(images)) % honest_pruning.SHOWN > 0
            row = honest_pruning.compared(
                options.models_dir / case.file,
                case.ratio,
                images[~others],
                (images[others], classes[others]),
                folder,
                options.threads,
            )
            bars = ["top1"] if case.name == "mobilenetv2" else []
            rows[case.name] = honest_pruning.show(case.name, row, bars)
        for share in (RATIO, 0.5):
            seen = bench_.known[:: len(bench_.known) // options.samples][: options.samples]
            row = honest_pruning.compared(
                bench_.model, share, seen, bench_.test, folder, options.threads
            )
            rows[f"resnet18 {share}"] = honest_pruning.show(f"resnet18 {share}", row)
    return rows


TABLES: dict[str, Callable[[Bench], dict[str, Row]]] = {
    "ratio": ratio,
    "half": half,
    "int8": int8,
    "latency": latency,
    "others": others,
    "torch-pruning": torch_pruning,
    "honest": honest,
}


def main() -> int:
    """Print the tables; exit status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path, required=True, help="folder of the models")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--photographs", type=Path, help="folder of pictures named by class")
    parser.add_argument("--only", choices=TABLES)
    parser.add_argument("--minutes", type=float, default=10.0, help="of each distillation")
    parser.add_argument("--samples", type=int, default=800, help="pictures for closed forms")
    parser.add_argument("--images", type=int, default=10_000, help="test pictures")
    parser.add_argument("--latency", type=float, default=0.6, help="the goal in latency")
    parser.add_argument("--criterion", choices=peer.NORMS, default="l2", help="both sides' norm")
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--modules", type=Path, help="folder that keeps the modules")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bench_ = Bench(options, options.modules or Path(scratch))
        results = {
            name: table(bench_) for name, table in TABLES.items() if options.only in (None, name)
        }
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    missed = sum(row.get("missed", 0) for rows in results.values() for row in rows.values())
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
