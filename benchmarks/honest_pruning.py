"""What a pruning reports beside what is true: agreement on samples that it has never seen.

ResNet-18 (CIFAR-10), MobileNetV2 and EfficientNet-lite0 (photographs), each pruned with few samples
and nothing else; the report holds some of them out. The truth is measured on all others. A table
of `prune.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import tinsmith

SETTINGS = {"runner": False, "static_library": False}
# One photograph in so many is shown to the pruning.
SHOWN = 4
# What is reported may be off by so many points, and MobileNetV2 keeps so much top-1.
POINTS, TOP1 = 3.0, 75.0


@dataclass(frozen=True)
class Case:
    """A model, how much of it goes, and how its pixels become input: `(pixels - mean) / std`."""

    name: str
    file: str
    ratio: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


PHOTOGRAPHS = (
    Case("mobilenetv2", "mobilenetv2.onnx", 0.2, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Case("efficientnet-lite0", "efficientnet_lite0.onnx", 0.2, (0.5,) * 3, (0.5,) * 3),
)


def photographs(folder: Path, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Pictures named by their class, `[N, 3, H, W]`, and the classes."""
    from PIL import Image

    files = sorted(folder.glob("*.jpg"))
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB"), np.float32) for file in files])
    inputs = (pixels / 255 - np.float32(case.mean)) / np.float32(case.std)
    classes = np.array([int(file.stem) for file in files])
    return np.ascontiguousarray(inputs.transpose(0, 3, 1, 2), np.float32), classes


def chosen(path: Path, images: np.ndarray, threads: int) -> np.ndarray:
    """The class that a module chooses for each image."""
    with tinsmith.load(path, threads=threads) as module:
        return np.array([int(module.run([image[None]])[0].argmax()) for image in images])


def compared(
    model: Path,
    ratio: float,
    seen: np.ndarray,
    others: tuple[np.ndarray, np.ndarray],
    folder: Path,
    threads: int,
) -> dict[str, float]:
    """Prune with `seen`, and measure on `others` (images and classes)."""
    shapes = {"input": (1, *seen.shape[1:])}
    whole, pruned = folder / f"{model.stem}-whole", folder / f"{model.stem}-pruned"
    tinsmith.compile_to(model, whole, shapes=shapes, threads=threads, **SETTINGS)
    report = tinsmith.compile_to(
        model,
        pruned,
        pruning=tinsmith.PruneConfig(ratio=ratio, calibration=seen),
        shapes=shapes,
        threads=threads,
        **SETTINGS,
    ).pruning
    assert report is not None and report.agreement is not None
    images, classes = others
    before, after = (chosen(path, images, threads) for path in (whole, pruned))
    return {
        "params": report.params[1] / report.params[0],
        "samples": len(seen),
        "judged_on": report.evaluated_samples,
        "reported": 100 * report.agreement,
        "true": 100 * float((before == after).mean()),
        "whole_top1": 100 * float((before == classes).mean()),
        "top1": 100 * float((after == classes).mean()),
    }


def heading() -> None:
    """Print the columns; agreements and top-1 in percent."""
    columns = ("params", "samples", "judged", "reported", "true", "whole", "top-1")
    print(f"{'model':22}" + "".join(f"{column:>10}" for column in columns), flush=True)


def show(name: str, row: dict[str, float], bars: Sequence[str] = ()) -> dict[str, float]:
    """Print one line, and which bars it misses."""
    missed = [f"reported {abs(row['reported'] - row['true']):.1f} points off"]
    if abs(row["reported"] - row["true"]) <= POINTS:
        missed = []
    if "top1" in bars and row["top1"] < TOP1:
        missed.append(f"top-1 below {TOP1:g}")
    print(
        f"{name:22}{row['params']:>10.3f}{row['samples']:>10.0f}{row['judged_on']:>10.0f}"
        f"{row['reported']:>10.2f}{row['true']:>10.2f}{row['whole_top1']:>10.2f}"
        f"{row['top1']:>10.2f}  {'MISSED ' + ', '.join(missed) if missed else 'ok'}",
        flush=True,
    )
    return {**row, "missed": float(len(missed))}
