"""CompileConfig: rejects what makes no sense, and survives a round trip through JSON."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinsmith.compiler.config import (
    CompileConfig,
    parse_constant_option,
    parse_constant_options,
    parse_shape_option,
    parse_shape_options,
)
from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.compiler.quantization.config import QuantizationConfig


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        ({"target": ""}, "target"),
        ({"threads": -1}, "threads"),
        ({"threads": True}, "threads"),
        ({"threads": 1.5}, "threads"),
        ({"golden": 2}, "golden"),
        ({"embed_weights": 0}, "embed_weights"),
        ({"seed": -1}, "seed"),
        ({"runner": 1}, "runner"),
        ({"winograd": "no"}, "winograd"),
        ({"shapes": {"x": (1, 0)}}, "x"),
        ({"shapes": {"x": "1,3"}}, "x"),
        ({"constants": {"x": "three"}}, "x"),
        ({"constants": [3]}, "constants"),
        ({"shapes": [("x", (1,))]}, "shapes"),
        ({"thread": 2}, "unknown option thread"),
    ],
)
def test_refuses(options: dict[str, Any], mentions: str) -> None:
    with pytest.raises(ConfigError, match=mentions):
        CompileConfig.from_dict(options)


def test_is_frozen_and_does_not_share_its_shapes() -> None:
    shapes = {"x": (1, 3)}
    config = CompileConfig(shapes=shapes)
    shapes["x"] = (7, 7)
    assert config.shapes == {"x": (1, 3)}
    with pytest.raises(TypeError):
        config.shapes["x"] = (2,)  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        config.threads = 3  # type: ignore[misc]


def test_round_trip_through_json(tmp_path: Path) -> None:
    config = CompileConfig(
        target="x86-64-v3",
        shapes={"x": (1, 3), "s": ()},
        constants={"rate": np.int64(16000), "scales": np.array([[1.5], [2.0]])},
        threads=2,
        dump=tmp_path,
        timing=True,
        quantization=QuantizationConfig(format="int8", calibration="random", mean=(0.5, 0.2, 0.1)),
        pruning=PruneConfig(ratio=0.3, keep=("first",)),
    )
    assert CompileConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_with_options_leaves_the_original_alone() -> None:
    config = CompileConfig()
    assert config.with_options(threads=4).threads == 4
    assert config.threads == 0


@pytest.mark.parametrize(
    "text", ["x", "=1,2", "x=1,a", "x=1,,2", "x=0", "x=-1,3", "x=1.5", "x=1,2,"]
)
def test_shape_option_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match="--shape"):
        parse_shape_option(text)


@given(
    st.text(min_size=1).filter(lambda name: name.strip()),
    st.lists(st.integers(1, 10**9)),
)
def test_shape_option_reads_what_it_prints(name: str, shape: list[int]) -> None:
    text = f"{name}={','.join(map(str, shape))}"
    assert parse_shape_option(text) == (name, tuple(shape))


def test_an_input_is_given_once() -> None:
    assert parse_shape_options(["x=1,2", "y=3"]) == {"x": (1, 2), "y": (3,)}
    assert parse_constant_options(["x=1"]) == {"x": 1}
    with pytest.raises(ConfigError, match=r"--shape x=\.\.\.: given twice"):
        parse_shape_options(["x=1,2", "x=1,2"])
    with pytest.raises(ConfigError, match=r"--constant x=\.\.\.: given twice"):
        parse_constant_options(["x=1", "x=2"])


def test_constant_option() -> None:
    assert parse_constant_option("rate=16000") == ("rate", 16000)
    assert parse_constant_option("s=[[1.5,2],[3,4]]") == ("s", ((1.5, 2), (3, 4)))


@pytest.mark.parametrize(
    "text",
    ["x", "=1", "x=", "x=abc", 'x="a"', "x=null", 'x={"a":1}', "x=" + "[" * 5000,
     "x=[[1],[2,3]]", "x=[1,[2]]"],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_constant_option_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match="constant"):
        parse_constant_option(text)
