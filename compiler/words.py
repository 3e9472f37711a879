"""The words of the command line, `--quantize int8 --prune 0.3 ...`, as configurations.

`tinsmith compile` and `tinsmith.compile` share them: a word is the option without its dashes, and
with underscores inside. One that is not given, is None or is at its default says nothing; one
that means nothing without another is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.compiler.quantization.config import (
    QuantizationConfig,
    parse_choice,
    parse_numbers,
    parse_resize,
)
from tinsmith.compiler.sample_options import SampleOptions

# Words, with the fields that they set: of both configurations, of each of them.
SAMPLE_WORDS: Mapping[str, str] = {item.name: item.name for item in fields(SampleOptions)}
QUANTIZE_WORDS: Mapping[str, str] = {
    "quantize": "format",
    "rounding": "rounding",
    "observer": "observer",
    "equalize": "equalize",
    "smooth": "smooth",
    "correct_bias": "correct_bias",
    "max_drop": "max_drop",
    "min_agreement": "min_agreement",
    "keep_float": "keep_float",
    "fallback": "fallback",
    "group_size": "group_size",
}
GOAL_WORDS: Mapping[str, str] = {
    "prune": "ratio",
    "prune_flops": "flops",
    "prune_params": "params",
    "prune_latency": "latency",
}
PRUNE_WORDS: Mapping[str, str] = {
    **GOAL_WORDS,
    "sparsity": "sparsity",
    "prune_criterion": "criterion",
    "prune_allocation": "allocation",
    "prune_residual": "residual",
    "prune_alignment": "alignment",
    "prune_steps": "steps",
    "keep_group": "keep",
    "recover": "recovery",
    "distill_minutes": "distill_minutes",
    "augment": "augment",
}
# How many samples are read unless it is said, whatever they are for.
DEFAULT_SAMPLES = 100
_DEFAULTS: Mapping[str, Any] = {
    **{
        word: item.default
        for config, words in (
            (PruneConfig, PRUNE_WORDS),
            (QuantizationConfig, {**QUANTIZE_WORDS, **SAMPLE_WORDS}),
        )
        for item in fields(config)
        for word, field in words.items()
        if field == item.name and word != "quantize"
    },
    "keep_float": (),
    "samples": DEFAULT_SAMPLES,
}
_NAMES = frozenset({"keep_float", "keep_group", "augment"})
_NUMBERS = frozenset({"mean", "std"})
_CHOICES = frozenset({"equalize", "smooth"})


def config_of(words: Mapping[str, Any], config: CompileConfig | None = None) -> CompileConfig:
    """`config`, or the default one, with what `words` say; they win over it.

    `words` are also fields of CompileConfig. Raises ConfigError for a word that is not known,
    has a value that makes no sense, or means nothing beside the others.
    """
    config = config or CompileConfig()
    known = {item.name for item in fields(CompileConfig)}
    own = {word: value for word, value in words.items() if word in known}
    others = {word: value for word, value in words.items() if word not in known}
    _refuse_unknown(others, known)
    for word, field in (("quantize", "quantization"), ("prune", "pruning")):
        if words.get(word) is not None and words.get(field) is not None:
            raise ConfigError(f"give either {word} or {field}, which holds all its options")
    config = config.with_options(**own)
    quantization = quantization_of(others, config.quantization)
    pruning = pruning_of(others, config.pruning)
    if quantization is None and pruning is None:
        _refuse(_given(others, SAMPLE_WORDS), "quantising", "--quantize int8")
    return replace(config, quantization=quantization, pruning=pruning)


def quantization_of(
    words: Mapping[str, Any], config: QuantizationConfig | None = None
) -> QuantizationConfig | None:
    """How a model is quantised by `words`, on top of `config`; None if it is not."""
    given = _given(words, QUANTIZE_WORDS)
    if config is None and "quantize" not in given:
        _refuse(given, "quantising", "--quantize int8")
        return None
    values = _fields(given, QUANTIZE_WORDS) | _fields(_given(words, SAMPLE_WORDS), SAMPLE_WORDS)
    return QuantizationConfig(**values) if config is None else replace(config, **values)


def pruning_of(words: Mapping[str, Any], config: PruneConfig | None = None) -> PruneConfig | None:
    """What is pruned by `words`, on top of `config`; None if nothing is."""
    given = _given(words, PRUNE_WORDS)
    goals = [word for word in GOAL_WORDS if word in given]
    if len(goals) > 1:
        raise ConfigError(f"{', '.join(map(_option, goals))}: give one goal of pruning")
    if config is None and not goals and "sparsity" not in given:
        _refuse(given, "pruning", "--prune 0.3")
        return None
    values = _fields(given, PRUNE_WORDS) | _fields(_given(words, SAMPLE_WORDS), SAMPLE_WORDS)
    if config is not None:
        cleared = dict.fromkeys(GOAL_WORDS.values()) if goals else {}
        return replace(config, **{**cleared, **values})
    return PruneConfig(**{"samples": DEFAULT_SAMPLES, **values})


def _given(words: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, Any]:
    """The values of those `words` that are `known` and say something."""
    given = {}
    for word in known:
        value = words.get(word)
        if value is None:
            continue
        value, default = _plain(word, value), _DEFAULTS.get(word)
        if default is None or value != default:
            given[word] = value
    return given


def _plain(word: str, value: Any) -> Any:
    """As the configurations take it: lists as tuples, texts of the command line as numbers."""
    if word in _NAMES:
        return tuple(value.split(",")) if isinstance(value, str) else tuple(value)
    if word in _NUMBERS:
        if isinstance(value, str):
            return parse_numbers(_option(word), value)
        return (float(value),) if isinstance(value, int | float) else tuple(map(float, value))
    if word in _CHOICES and isinstance(value, str):
        return parse_choice(_option(word), value)
    if word == "prune_residual" and isinstance(value, str) and value != _DEFAULTS[word]:
        try:
            return float(value)
        except ValueError as error:
            raise ConfigError(
                f"--prune-residual {value}: expected a number from 0 to 1, or auto"
            ) from error
    if word == "resize":
        if isinstance(value, str):
            return parse_resize(value)
        return tuple(value) if isinstance(value, list) else value
    return value


def _fields(given: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, Any]:
    return {known[word]: value for word, value in given.items()}


def _refuse(given: Mapping[str, Any], purpose: str, remedy: str) -> None:
    for word in given:
        raise ConfigError(f"{_option(word)} is for {purpose}: add {remedy}")


def _refuse_unknown(words: Mapping[str, Any], known: set[str]) -> None:
    known = known | {*SAMPLE_WORDS, *QUANTIZE_WORDS, *PRUNE_WORDS}
    for word in sorted(set(words) - known):
        near = difflib.get_close_matches(word, known, n=1)
        meant = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"
        raise ConfigError(f"unknown option {word}{meant}")


def _option(word: str) -> str:
    return f"--{word.replace('_', '-')}"
