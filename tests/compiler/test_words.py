"""The words of the command line as keyword arguments: the same configurations come out."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinsmith
from tinsmith.compiler.cli.compile_command import compile_model
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.compiler.quantization.config import QuantizationConfig
from tinsmith.compiler.words import PRUNE_WORDS, QUANTIZE_WORDS, SAMPLE_WORDS, config_of


def test_every_option_of_the_command_line_is_a_word() -> None:
    options = set(inspect.signature(compile_model).parameters)
    # Where it reads and writes, and what is a field of CompileConfig under the plural.
    own = {"model", "out", "report_file", "as_json", "shape", "constant"}
    fields = set(CompileConfig.__dataclass_fields__)
    assert options - own - fields == {*PRUNE_WORDS, *QUANTIZE_WORDS, *SAMPLE_WORDS}


def test_words_become_configurations() -> None:
    config = config_of(
        {
            "target": "x86-64-v3",
            "shapes": {"x": [1, 3, 8, 8]},
            "quantize": "int8",
            "calibration": "photos/",
            "mean": [0.5, 0.4, 0.3],
            "std": 0.2,
            "resize": [64, 48],
            "smooth": "off",
            "keep_float": "first",
            "prune": 0.3,
            "prune_residual": "0.5",
            "augment": "flip,crop",
        }
    )
    data: dict[str, Any] = {
        "calibration": "photos/",
        "samples": 100,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2,),
        "resize": (64, 48),
    }
    assert config == CompileConfig(
        target="x86-64-v3",
        shapes={"x": (1, 3, 8, 8)},
        quantization=QuantizationConfig(format="int8", smooth=False, keep_float=("first",), **data),
        pruning=PruneConfig(ratio=0.3, residual=0.5, augment=("flip", "crop"), **data),
    )


def test_words_win_over_a_configuration() -> None:
    base = CompileConfig(
        threads=2,
        quantization=QuantizationConfig(calibration="random", group_size=32),
        pruning=PruneConfig(ratio=0.5, calibration="random", steps=2),
    )
    config = config_of({"observer": "mse", "prune_flops": 0.7, "samples": 8}, base)
    assert config.threads == 2
    assert config.quantization == QuantizationConfig(
        calibration="random", group_size=32, observer="mse", samples=8
    )
    assert config.pruning == PruneConfig(flops=0.7, calibration="random", steps=2, samples=8)
    assert config_of({}, base) == base


def test_defaults_and_none_say_nothing() -> None:
    nothing = {"prune_steps": 1, "samples": 100, "mean": (0.0,), "calibration": None, "prune": None}
    assert config_of(nothing) == CompileConfig()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"shape": {"x": (1,)}}, "unknown option shape; did you mean shapes?"),
        ({"quantise": "int8"}, "unknown option quantise; did you mean quantize?"),
        ({"colour": "red"}, "unknown option colour; known are augment, "),
        ({"observer": "mse"}, "--observer is for quantising: add --quantize int8"),
        ({"calibration": np.zeros((4, 3))}, "--calibration is for quantising"),
        ({"mean": 0.5, "prune_steps": 3}, "--prune-steps is for pruning: add --prune 0.3"),
        ({"prune": 0.3, "prune_flops": 0.5}, "--prune, --prune-flops: give one goal"),
        ({"quantize": "int7", "calibration": "random"}, "--quantize int7: choose from int8"),
        ({"quantize": "int8"}, "needs data: pass --calibration"),
        ({"quantize": "bf16", "smooth": "maybe"}, "--smooth maybe: choose from on, off, auto"),
        ({"prune": 0.3, "prune_residual": "much"}, "--prune-residual much: expected a number"),
        (
            {"quantize": "bf16", "quantization": QuantizationConfig("bf16")},
            "give either quantize or quantization",
        ),
    ],
)
def test_words_that_make_no_sense_are_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(words)
    assert message in str(caught.value)


def test_a_model_is_compiled_by_words(
    small_model_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype("float32")
    with (
        caplog.at_level("INFO", logger="tinsmith"),
        tinsmith.compile(
            small_model_file,
            quantize="int8-weights",
            calibration=samples,
            prune=0.3,
            recover="none",
            shapes={"image": (1, 3, 8, 8)},
            threads=1,
            runner=False,
            static_library=False,
        ) as module,
    ):
        assert module(samples[:1].tolist())["scores"].shape == (1, 5)
        assert module.manifest.measured.quantization and module.manifest.measured.pruning
    phases = [record.message.partition(":")[0] for record in caplog.records]
    assert phases[:2] == ["import", "prune"] and "build" in phases
    assert all(record.name.startswith("tinsmith.") for record in caplog.records)
