"""The table of a quantisation report."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from compiler.cli import output
from compiler.errors import ConfigError
from compiler.quantization.report import QuantizationReport


def print_quantization(report: QuantizationReport) -> None:
    """One line for the model and a row for each layer."""
    output.print_table(
        "layers",
        ("layer", "operator", "computes in", "low", "high", "SQNR dB", "cosine"),
        [
            (
                layer.name,
                layer.operator.removeprefix("relax."),
                layer.computes + (f": {layer.reason}" if layer.reason else ""),
                _number(layer.low, ".3g"),
                _number(layer.high, ".3g"),
                _number(layer.sqnr_db, ".1f"),
                _number(layer.cosine, ".4f"),
            )
            for layer in report.layers
        ],
        left=3,
    )
    output.say(report.summary())


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
