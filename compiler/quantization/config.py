"""The options of quantisation: frozen data that checks itself, without TVM."""

from __future__ import annotations

from dataclasses import dataclass, field

from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.sample_options import SampleOptions

# Only weights have fewer bits; all arithmetic is float32.
WEIGHT_FORMATS = ("int8-weights", "int4-weights", "kmeans4-weights", "powers4-weights")
FORMATS = ("int8", "bf16", "fp16", *WEIGHT_FORMATS)
# Weights that share a scale.
GROUP_SIZES = (16, 32, 64, 128, 256)
# Formats whose activations need ranges, so data.
CALIBRATED = frozenset({"int8"})
# An option that the calibration data decide.
AUTO = "auto"
ROUNDINGS = ("nearest", "least-squares")
OBSERVERS = ("minmax", "moving_average", "percentile", "entropy", "mse")


@dataclass(frozen=True)
class QuantizationConfig(SampleOptions):
    """How a model is quantised, beside the samples of `SampleOptions`.

    format: `int8`: 8-bit weights (symmetric, a scale per output channel) and activations
        (affine, a scale per tensor), computed in integers. `bf16`: products in bfloat16, sums
        and everything else in float32, tensors stored in bfloat16; float32 where the target has
        no such instructions. `fp16`: the same in float16; refused where there are none.
        `int8-weights`, `int4-weights`: even levels for weights, a scale for each group;
        `kmeans4-weights`, `powers4-weights`: 16 levels found by k-means, or powers of two.
        Kernels decompress them, and compute in float32.
    calibration: only `int8` needs samples; the others are compared with float on them, by default
        on a few random inputs. Weights of 4 bits are rounded to suit them, unless they are random.
    observer: how ranges are found from the values seen: `minmax`, `moving_average`,
        `percentile`, `entropy` or `mse`.
    equalize: cross-layer equalisation, which evens out the channels of neighbouring layers:
        True, False, or "auto": where there are depthwise convolutions, with or without, whichever
        keeps the output of the calibration data better; else with.
    smooth: SmoothQuant, which moves outlier channels of layer normalisations into the products
        that read them: True, False, or "auto": whichever keeps the output better.
    correct_bias: compensate in the bias what rounding the weights adds on average.
    rounding: of the weights of `int8`: each to the `nearest` code, or by `least-squares`, so that
        the products of the calibration data change least.
    keep_float: operators, by the names of their results in the report, that compute in float.
    group_size: how many weights of an output channel share a scale at most.
    min_weights: products of fewer weights than this keep them in float32.
    max_drop: points of top-1 accuracy that may be lost at most (0.5: from 80 % to 79.5 %); needs
        labels. The most sensitive layers stay in float until this holds.
    min_agreement: percent of the samples, such as 99.5, for which the model must choose the same
        class as in float32; needs no labels. Both are for models that answer a row of scores.
    fallback: let layers that are slower in integers compute in float, if that makes the model
        faster on this machine.
    """

    format: str = "int8"
    samples: int | None = 100
    observer: str = "percentile"
    equalize: bool | str = AUTO
    smooth: bool | str = AUTO
    correct_bias: bool = True
    rounding: str = "nearest"
    keep_float: tuple[str, ...] = field(default_factory=tuple)
    group_size: int = 64
    min_weights: int = 2048
    max_drop: float | None = None
    min_agreement: float | None = None
    fallback: bool = True

    @property
    def learns(self) -> bool:
        """Whether ranges or codes depend on the calibration data."""
        fits_data = self.format in WEIGHT_FORMATS and "4" in self.format and self.has_data
        return self.format in CALIBRATED or fits_data

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(f"--quantize {self.format}: choose from {', '.join(FORMATS)}")
        if self.observer not in OBSERVERS:
            raise ConfigError(f"--observer {self.observer}: choose from {', '.join(OBSERVERS)}")
        for name in ("equalize", "smooth"):
            if getattr(self, name) not in (True, False, AUTO):
                raise ConfigError(f"{name} {getattr(self, name)}: expected True, False or auto")
        if self.rounding not in ROUNDINGS:
            raise ConfigError(f"--rounding {self.rounding}: choose from {', '.join(ROUNDINGS)}")
        if self.group_size not in GROUP_SIZES:
            raise ConfigError(
                f"--group-size {self.group_size}: choose from {', '.join(map(str, GROUP_SIZES))}"
            )
        if self.calibration is None and self.format in CALIBRATED:
            raise ConfigError(
                "quantising activations needs data: pass --calibration with a folder of "
                "pictures, an .npz or .npy file, or `random` to try without"
            )

        _check_bound("--max-drop", self.max_drop, "points of top-1 accuracy from 0 to 100", 0)
        _check_bound("--min-agreement", self.min_agreement, "a percentage, such as 99.5", 1)


def _check_bound(option: str, value: float | None, meaning: str, least: float) -> None:
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # A share such as 0.995 would be a bound that always holds: refuse it as a percentage.
    if not number or not least <= value <= 100:
        raise ConfigError(f"{option} {value}: expected {meaning}")


def parse_choice(option: str, text: str) -> bool | str:
    """`on`, `off` or `auto`; ConfigError names the option."""
    choices: dict[str, bool | str] = {"on": True, "off": False, AUTO: AUTO}
    if text not in choices:
        raise ConfigError(f"{option} {text}: choose from {', '.join(choices)}")
    return choices[text]


def parse_numbers(option: str, text: str) -> tuple[float, ...]:
    """`0.485,0.456,0.406` -> numbers; ConfigError names the option."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} {text}: expected numbers separated by commas") from error


def parse_resize(text: str) -> int | tuple[int, int]:
    """`256` or `224,224` (height, width)."""
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) not in (1, 2):
        raise ConfigError(f"--resize {text}: expected SIZE or HEIGHT,WIDTH")
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])
