"""The table of a quantisation report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any

from tinsmith.compiler.cli import output
from tinsmith.compiler.cli.tables import elided
from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.quantization.report import LayerReport, QuantizationReport

# Rows of the table beyond which only the layers that matter most are shown.
_ROWS = 80
_NAME = 36


def print_quantization(report: QuantizationReport) -> None:
    """A row for each layer, notes, and one line for the model."""
    shown = _shown(report.layers)
    columns = {title: [cell(layer) for layer in shown] for title, cell in _COLUMNS.items()}
    told = {title: cells for title, cells in columns.items() if any(cells)}
    output.print_table("layers", tuple(told), zip(*told.values(), strict=True), left=4)
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
    integer.sort(key=lambda layer: inf if layer.sqnr_db is None else layer.sqnr_db)
    others = [layer for layer in layers if layer.computes != "integer"][:_ROWS]
    chosen = {layer.name for layer in (*others, *integer[: _ROWS - len(others)])}
    return [layer for layer in layers if layer.name in chosen]


def _microseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:.1f}"


def _kibibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1024:.1f}"


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


# The cells of a layer's row by the title of their column; columns without any are not shown.
_COLUMNS: dict[str, Callable[[LayerReport], str]] = {
    "layer": lambda layer: layer.name,
    "in the model": lambda layer: elided(layer.origin, _NAME),
    "operator": lambda layer: layer.operator.removeprefix("relax."),
    "computes in": lambda layer: layer.computes + (layer.reason and f": {layer.reason}"),
    "bits": lambda layer: (
        f"{layer.weight_bits}/{layer.activation_bits or 32}" if layer.weight_bits else ""
    ),
    "group": lambda layer: _number(layer.group, "d"),
    "weights dB": lambda layer: _number(layer.weight_sqnr_db, ".1f"),
    "float32 KiB": lambda layer: _kibibytes(layer.float_weight_bytes),
    "KiB": lambda layer: _kibibytes(layer.weight_bytes),
    "low": lambda layer: _number(layer.low, ".3g"),
    "high": lambda layer: _number(layer.high, ".3g"),
    "SQNR dB": lambda layer: _number(layer.sqnr_db, ".1f"),
    "cosine": lambda layer: _number(layer.cosine, ".4f"),
    "float32 us": lambda layer: _microseconds(layer.float_seconds),
    "us": lambda layer: _microseconds(layer.seconds),
    "cost us": lambda layer: _microseconds(layer.cost_seconds),
    "sensitivity": lambda layer: _number(layer.sensitivity, ".1e"),
}
