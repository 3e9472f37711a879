"""The options of a compilation: frozen data that checks itself.

Nothing here imports TVM. A configuration is written into the module's manifest
by `CompileConfig.to_dict`, so that a module says how it was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tinsmith.compiler.dimensions.ranges import Range, highest, parse_size
from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.compiler.quantization.config import QuantizationConfig

# A number, or nested tuples of numbers.
Constant = Any


@dataclass(frozen=True)
class CompileConfig:
    """How a model is compiled.

    target: a name that `tinsmith targets` lists; `native` is the machine at hand. Several (a
        list, or names with commas) make one module for all of them: `x86-64-v3,native`.
    shapes: for each model input to bind, its shape. A `Range` in the place of the batch's size
        leaves that to each run: {"x": (Range(1, 8), 3, 224, 224)}.
    batch: the size, or Range of sizes, of batch dimensions that no shape is given for; None
        makes them 1, with a note.
    constants: inputs to replace by constants: a number, or nested sequences of numbers
        (numpy arrays are converted), which must fit the input's dtype.
    threads: for how many threads the kernels are scheduled, and with how many the
        module is proved and timed after it was built; 0 means the target's cores.
    static_library: also write `model.a`, for linking into a program.
    runner: also write `tinsmith-run`, a static executable that runs the module.
    embed_weights: whether the weights are part of the library, or a file of their own
        (mapped from 64 MiB on, read into memory below); None decides by their size.
    golden: whether the module carries golden vectors (an input with its reference
        output), with which it can prove itself where it is deployed.
    seed: for the random input of the golden vectors.
    dump: a folder to write the graph to after each pass, or None.
    pruning: how much of the model goes before all else; None leaves it whole.
    quantization: how the model is quantised; None leaves it in floating point.
    log: a folder with tuning records to ask before the user's and the packaged ones, or None.
    tuned: whether tuning records are used at all, or every kernel gets its template's default.
    winograd: whether 3x3 convolutions in float32 may be computed by Winograd's algorithm,
        where that is faster; results then differ by a few more roundings.
    timing: whether the time of every single pass is in the report, and not just that
        of the phases.
    """

    target: str = "native"
    shapes: Mapping[str, tuple[int | Range, ...]] = field(default_factory=dict)
    batch: int | Range | None = None
    constants: Mapping[str, Constant] = field(default_factory=dict)
    threads: int = 0
    static_library: bool = True
    runner: bool = True
    embed_weights: bool | None = None
    golden: bool = True
    seed: int = 0
    dump: Path | None = None
    timing: bool = False
    log: Path | None = None
    tuned: bool = True
    quantization: QuantizationConfig | None = None
    pruning: PruneConfig | None = None
    winograd: bool = True

    def __post_init__(self) -> None:
        given: Any = self.target
        if isinstance(given, (list, tuple)) and all(isinstance(name, str) for name in given):
            object.__setattr__(self, "target", ",".join(given))
        if not isinstance(self.target, str) or not self.target:
            raise ConfigError(f"target must be a name, not {self.target!r}: see `tinsmith targets`")
        object.__setattr__(self, "shapes", _checked_shapes(self.shapes))
        if self.batch is not None:
            object.__setattr__(self, "batch", _checked_size("batch", self.batch))
        object.__setattr__(self, "constants", _checked_constants(self.constants))
        for name, low, high in (
            ("threads", 0, 256),
            ("seed", 0, 2**32 - 1),
        ):
            _check_integer(name, getattr(self, name), low, high)
        switches = ["static_library", "runner", "golden", "timing", "tuned", "winograd"]
        switches += [] if self.embed_weights is None else ["embed_weights"]
        for name in switches:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, not {getattr(self, name)!r}")
        for name in ("dump", "log"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        if self.quantization is not None and not isinstance(self.quantization, QuantizationConfig):
            raise ConfigError(
                f"quantization must be a QuantizationConfig, not {self.quantization!r}"
            )
        if self.pruning is not None and not isinstance(self.pruning, PruneConfig):
            raise ConfigError(f"pruning must be a PruneConfig, not {self.pruning!r}")

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> CompileConfig:
        """A configuration from plain data; unknown keys raise ConfigError."""
        given = dict(options)
        if isinstance(given.get("quantization"), Mapping):
            given["quantization"] = QuantizationConfig(**_with_tuples(given["quantization"]))
        if isinstance(given.get("pruning"), Mapping):
            given["pruning"] = PruneConfig(**_with_tuples(given["pruning"]))
        return CompileConfig().with_options(**given)

    def with_options(self, **options: Any) -> CompileConfig:
        """A copy with some options replaced; unknown names raise ConfigError."""
        known = {item.name for item in fields(self)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ConfigError(
                f"unknown option {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        return replace(self, **options)

    @property
    def range(self) -> Range | None:
        """The range of a size that is left to each run, if there is one."""
        sizes = (self.batch, *(size for shape in self.shapes.values() for size in shape))
        return next((size for size in sizes if isinstance(size, Range)), None)

    def at_bound(self) -> CompileConfig:
        """The configuration with the largest size in the place of each range."""
        shapes = {name: tuple(map(highest, shape)) for name, shape in self.shapes.items()}
        return replace(
            self, shapes=shapes, batch=None if self.batch is None else highest(self.batch)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` gives the same configuration back."""
        result = {item.name: getattr(self, item.name) for item in fields(self)}
        result["shapes"] = {
            name: [_plain_size(size) for size in shape] for name, shape in self.shapes.items()
        }
        result["batch"] = _plain_size(self.batch)
        result["constants"] = dict(self.constants)
        for name in ("dump", "log"):
            result[name] = None if result[name] is None else str(result[name])
        if self.quantization is not None:
            result["quantization"] = self.quantization.to_dict()
        if self.pruning is not None:
            result["pruning"] = self.pruning.to_dict()
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only mapping cannot be pickled; worker processes receive plain data.
        return CompileConfig.from_dict, (self.to_dict(),)


def parse_shape_options(texts: Iterable[str]) -> dict[str, tuple[int | Range, ...]]:
    """Shapes by name of input, of options such as `input=1..8,3,224,224`; each input once."""
    return _by_name("--shape", map(parse_shape_option, texts))


def parse_constant_options(texts: Iterable[str]) -> dict[str, Constant]:
    """Values by name of input, of options such as `rate=16000`; each input once."""
    return _by_name("--constant", map(parse_constant_option, texts))


def parse_shape_option(text: str) -> tuple[str, tuple[int | Range, ...]]:
    """`input=1..8,3,224,224` -> ("input", (Range(1, 8), 3, 224, 224)); `x=` is a scalar."""
    name, separator, dimensions = text.rpartition("=")
    shape: tuple[int | Range, ...]
    try:
        shape = tuple(map(parse_size, dimensions.split(","))) if dimensions.strip() else ()
    except (ValueError, ConfigError):
        shape = (-1,)
    if not separator or not name or any(isinstance(n, int) and n < 1 for n in shape):
        raise ConfigError(
            f"--shape {text}: expected NAME=N,N,... with positive integers, or a range as 1..8"
        )
    return name, shape


def refuse_ranges(shapes: Mapping[str, tuple[int | Range, ...]]) -> None:
    """Raise ConfigError for a range: where a graph is changed, it has one size."""
    for name, shape in shapes.items():
        for size in shape:
            if isinstance(size, Range):
                raise ConfigError(f"--shape {name}: {size}: give one size; a range is for compile")


def parse_batch_option(text: str) -> int | Range:
    """`4` or `1..8`; raises ConfigError for another text."""
    try:
        return _checked_size("--batch", parse_size(text))
    except ValueError as error:
        raise ConfigError(f"--batch {text}: expected a size, or a range as 1..8") from error


def parse_constant_option(text: str) -> tuple[str, Constant]:
    """`rate=16000` or `scales=[1.0,2.0]` -> (name, value)."""
    name, separator, value = text.partition("=")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    if not separator or not name or parsed is None:
        raise ConfigError(f"--constant {text}: expected NAME=NUMBER or NAME=[N,N,...]")
    return name, _frozen(name, parsed)


def _by_name(option: str, given: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in given:
        if name in result:
            raise ConfigError(f"{option} {name}=...: given twice; leave one of them out")
        result[name] = value
    return result


def _with_tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists only."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}


def _checked_shapes(shapes: Mapping[str, Any]) -> Mapping[str, tuple[int | Range, ...]]:
    if not isinstance(shapes, Mapping):
        raise ConfigError(f"shapes must map input names to shapes, not {shapes!r}")
    checked: dict[str, tuple[int | Range, ...]] = {}
    for name, shape in shapes.items():
        try:
            if isinstance(shape, (str, bytes)):
                raise TypeError
            checked[name] = tuple(_checked_size(name, size) for size in shape)
        except (TypeError, ConfigError) as error:
            raise ConfigError(
                f"shape of {name} must be positive integers or ranges, not {shape!r}"
            ) from error
    return MappingProxyType(checked)


def _checked_size(name: str, size: Any) -> int | Range:
    """A positive integer or a range, which plain data has as `1..8`."""
    if isinstance(size, str):
        with suppress(ValueError):
            size = parse_size(size)
    if isinstance(size, Range):
        return size
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError(f"{name} must be a positive integer or a range, not {size!r}")
    return size


def _plain_size(size: int | Range | None) -> int | str | None:
    return str(size) if isinstance(size, Range) else size


def _checked_constants(constants: Mapping[str, Any]) -> Mapping[str, Constant]:
    if not isinstance(constants, Mapping):
        raise ConfigError(f"constants must map input names to values, not {constants!r}")
    return MappingProxyType({name: _frozen(name, value) for name, value in constants.items()})


def _frozen(name: str, value: Any) -> Constant:
    """`value` as plain numbers and tuples, which compare, hash, and go into JSON."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        items = tuple(_frozen(name, item) for item in value)
        if len({_extents(item) for item in items}) > 1:
            raise ConfigError(f"constant for {name} has rows of different lengths")
        return items
    raise ConfigError(f"constant for {name} must be numbers, not {value!r}")


def _extents(value: Constant) -> tuple[int, ...]:
    return (len(value), *(_extents(value[0]) if value else ())) if isinstance(value, tuple) else ()


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name} must be an integer, not {value!r}")
    if not low <= value <= high:
        raise ConfigError(f"{name} must be between {low} and {high}, not {value}")
