"""The table of a quantisation report."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compiler.cli import output
from compiler.errors import ConfigError
from compiler.quantization.report import LayerReport, QuantizationReport

# Rows of the table beyond which only the layers that matter most are shown.
_ROWS = 80


def print_quantization(report: QuantizationReport) -> None:
    """A row for each layer, notes, and one line for the model."""
    shown = _shown(report.layers)
    output.print_table(
        "layers",
        (
            "layer",
            "operator",
            "computes in",
            "bits",
            "low",
            "high",
            "SQNR dB",
            "cosine",
            "float32 us",
            "us",
        ),
        [
            (
                layer.name,
                layer.operator.removeprefix("relax."),
                layer.computes + (f": {layer.reason}" if layer.reason else ""),
                f"{layer.weight_bits}/{layer.activation_bits}" if layer.weight_bits else "",
                _number(layer.low, ".3g"),
                _number(layer.high, ".3g"),
                _number(layer.sqnr_db, ".1f"),
                _number(layer.cosine, ".4f"),
                _microseconds(layer.float_seconds),
                _microseconds(layer.seconds),
            )
            for layer in shown
        ],
        left=3,
    )
    if len(shown) < len(report.layers):
        output.say(
            f"{len(report.layers) - len(shown)} more layers in integers, of higher SQNR: "
            "see --report FILE.json or --json"
        )
    for remark in report.notes:
        output.note(remark)
    output.say(report.summary())


def _shown(layers: Sequence[LayerReport]) -> list[LayerReport]:
    """All layers if they fit, else those in float and the ones with the lowest SQNR."""
    if len(layers) <= _ROWS:
        return list(layers)
    integer = [layer for layer in layers if layer.computes == "integer"]
    integer.sort(key=lambda layer: np.inf if layer.sqnr_db is None else layer.sqnr_db)
    others = [layer for layer in layers if layer.computes != "integer"][:_ROWS]
    chosen = {layer.name for layer in (*others, *integer[: _ROWS - len(others)])}
    return [layer for layer in layers if layer.name in chosen]


def _microseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:.1f}"


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a file whole or not at all. Raises ConfigError if the folder cannot be written."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(document, indent=2) + "\n")
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"--report {path}: {error.strerror}") from error


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
