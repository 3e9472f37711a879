"""What quantisation did to a model, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LayerReport:
    """One operator that could be quantised.

    `computes` is "integer" or "float", with the `reason` for float. `tensor` is what is stored
    of its result, behind bias, residual and activation; `low` and `high` are the calibrated range
    of that, and `sqnr_db` and `cosine` compare it with the float model's.
    """

    name: str
    operator: str
    computes: str
    reason: str = ""
    tensor: str = ""
    low: float | None = None
    high: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class QuantizationReport:
    """The whole model.

    `output_sqnr_db` and `output_cosine` compare the model's first output with the float
    model's over `samples` samples, `agreement` is the share of samples with the same largest
    element (None unless the output is a row of scores).
    """

    format: str
    source: str
    samples: int
    layers: tuple[LayerReport, ...]
    output_sqnr_db: float
    output_cosine: float
    agreement: float | None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def integer_layers(self) -> int:
        return sum(layer.computes == "integer" for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; infinities become None."""
        return _finite(asdict(self) | {"integer_layers": self.integer_layers})

    def summary(self) -> str:
        """One line for a person."""
        parts = [
            f"{self.format}: {self.integer_layers} of {len(self.layers)} layers in integers",
            f"output {self.output_sqnr_db:.1f} dB SQNR over {self.samples} samples",
        ]
        if self.agreement is not None:
            parts.append(f"same top-1 on {self.agreement:.1%}")
        return ", ".join(parts)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
