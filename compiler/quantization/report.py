"""What quantisation did to a model, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerReport:
    """One operator that could be quantised.

    `origin` is what the model's file calls its result, or what is computed of it at once.
    `computes` is "integer", "bfloat16", or "float" with the `reason`. `tensor` is what is
    stored of its result, behind bias, residual and activation; `low` and `high` are the
    calibrated range of that, and `sqnr_db` and `cosine` compare it with the float model's. The
    bits are those of what the operator multiplies.

    Of a layer whose weights alone have fewer bits, `group` weights share a scale,
    `weight_sqnr_db` compares the weights with the float ones, and `weight_bytes` are stored
    instead of `float_weight_bytes`.

    `float_seconds` is what the layer takes in the float32 module, `seconds` in this one, both
    with the conversions that it needs; `integer_seconds` what it took in integers, if that was
    tried and given up: `cost_seconds` is what giving up cost. `sensitivity` is the noise power
    over the signal power at the model's output with only this layer quantised. None where
    it was not measured.
    """

    name: str
    operator: str
    computes: str
    reason: str = ""
    tensor: str = ""
    weight_bits: int | None = None
    activation_bits: int | None = None
    low: float | None = None
    high: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    float_seconds: float | None = None
    seconds: float | None = None
    integer_seconds: float | None = None
    group: int | None = None
    weight_sqnr_db: float | None = None
    float_weight_bytes: int | None = None
    weight_bytes: int | None = None
    sensitivity: float | None = None
    origin: str = ""

    @property
    def cost_seconds(self) -> float | None:
        """Seconds that the layer takes longer than it did in integers."""
        if self.seconds is None or self.integer_seconds is None:
            return None
        return self.seconds - self.integer_seconds


@dataclass(frozen=True)
class QuantizationReport:
    """The whole model.

    `output_sqnr_db` and `output_cosine` compare the output of floats that lost most with the float
    model's over `samples` samples, `agreement` is the share of samples of the same class (None if
    no output chooses one: neither a row of scores nor a class for each row). Where evaluation was
    asked for, it is that over the `evaluated_samples` samples of `evaluated_on`; `top1` and
    `float_top1` are the shares of right classes there, if there are labels.

    `float_seconds` and `seconds` are the latencies of the float32 module and of this one on
    this machine, measured in turns; None where they were not, and `notes` say why.
    `float_bytes` and `bytes` are the sizes of the two modules' libraries and weights.
    """

    format: str
    source: str
    samples: int
    layers: tuple[LayerReport, ...]
    output_sqnr_db: float
    output_cosine: float
    agreement: float | None
    float_bytes: int
    bytes: int
    float_seconds: float | None = None
    seconds: float | None = None
    evaluated_on: str | None = None
    evaluated_samples: int = 0
    top1: float | None = None
    float_top1: float | None = None
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def integer_layers(self) -> int:
        """How many layers compute in integers."""
        return sum(layer.computes == "integer" for layer in self.layers)

    @property
    def short_float_layers(self) -> int:
        """How many layers compute in a float of 16 bits."""
        return sum(layer.computes in ("bfloat16", "float16") for layer in self.layers)

    @property
    def compressed_layers(self) -> int:
        """How many layers compute in float with weights of fewer bits."""
        return sum(layer.weight_bytes is not None for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; infinities become None."""
        return _finite(asdict(self) | {"integer_layers": self.integer_layers})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QuantizationReport:
        """The report that a module's manifest holds; KeyError or TypeError for other data."""
        known = {k: v for k, v in data.items() if k != "integer_layers"}
        known["layers"] = tuple(LayerReport(**layer) for layer in known["layers"])
        known["notes"] = tuple(known.get("notes", ()))
        return cls(**known)

    def summary(self) -> str:
        """One line for a person."""
        parts = [f"{self.format}: {self._share()}"]
        if self.output_sqnr_db is not None:
            parts.append(f"output {self.output_sqnr_db:.1f} dB SQNR over {self.samples} samples")
        if self.agreement is not None:
            on = f" of {self.evaluated_samples}" if self.evaluated_samples else ""
            parts.append(f"same top-1 on {self.agreement:.2%}{on}")
        if self.top1 is not None and self.float_top1 is not None:
            parts.append(f"top-1 {self.top1:.2%} (float32 {self.float_top1:.2%})")
        parts.append(
            f"{self.bytes / 2**20:.2f} MiB ({self.bytes / self.float_bytes:.2f} of float32)"
        )
        if self.seconds is not None and self.float_seconds is not None:
            parts.append(
                f"{self.seconds * 1e3:.3f} ms (float32 {self.float_seconds * 1e3:.3f} ms, "
                f"{self.float_seconds / self.seconds:.2f} times as fast)"
            )
        return ", ".join(parts)

    def _share(self) -> str:
        """How many layers are quantised."""
        total = len(self.layers)
        if self.compressed_layers:
            stored = sum(layer.weight_bytes or 0 for layer in self.layers)
            before = sum(layer.float_weight_bytes or 0 for layer in self.layers)
            return (
                f"{self.compressed_layers} of {total} layers with compressed weights, "
                f"{before / 2**20:.2f} MiB of floats in {stored / 2**20:.2f} MiB"
            )
        kinds = {"integers": self.integer_layers, "bfloat16": self.short_float_layers}
        own = "integers" if self.format == "int8" else "bfloat16"
        others = "".join(f" and {n} in {kind}" for kind, n in kinds.items() if n and kind != own)
        return f"{kinds[own]} of {total} layers in {own}{others}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
