"""Which samples a step of the compilation reads, and how: frozen data, without TVM."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

_IN_MEMORY = ("calibration", "evaluation", "labels")


@dataclass(frozen=True)
class SampleOptions:
    """Samples to learn from, and samples to judge by.

    calibration: what `tinsmith.compiler.calibration.open_calibration` takes: a folder of pictures,
        an .npz or .npy file, arrays, an iterable of samples, or "random"; None without data.
    samples: how many samples are read at most; None reads all.
    mean, std, pixel_range, layout, resize: how pixels become input, see
        `tinsmith.compiler.calibration.Preprocessing`.
    labels: the class index of each sample of `evaluation`, or of `calibration` without that: a
        .npy, .csv or .txt file, "from-names" for pictures, or an array, see
        `tinsmith.compiler.calibration.read_labels`. An .npz may hold them itself, as `labels`.
    evaluation: held-out data, in the forms of `calibration`, on which agreement and accuracy are
        measured; all of them. None takes the samples of `calibration`.
    """

    calibration: Any = None
    samples: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    pixel_range: float = 1.0
    layout: str | None = None
    resize: int | tuple[int, int] | None = None
    labels: Any = None
    evaluation: Any = None

    @property
    def has_data(self) -> bool:
        """Whether there are real samples."""
        return self.calibration is not None and not (
            isinstance(self.calibration, str) and self.calibration == "random"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; data that lie in memory are named by their type only."""
        result = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in _IN_MEMORY:
            if result[name] is not None and not isinstance(result[name], str):
                path = str(result[name]) if hasattr(result[name], "__fspath__") else None
                result[name] = path or type(result[name]).__name__
        return result
