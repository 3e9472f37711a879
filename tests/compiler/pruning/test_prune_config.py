"""What a pruning configuration accepts, and what it refuses in one line."""

from __future__ import annotations

import json

import pytest

import tinsmith
from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.passes.prune.importance.normalization import NORMALIZATIONS as KNOWN
from tinsmith.passes.prune.schedule import SCHEDULES as KNOWN_SCHEDULES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one goal"),
        ({"ratio": 0.3, "flops": 0.5}, "given are ratio, flops"),
        ({"ratio": 0.0}, "--prune 0.0: expected a number between 0 and 1"),
        ({"ratio": 1.0}, "--prune 1.0"),
        ({"latency": 1.5}, "--prune-latency 1.5"),
        ({"params": "half"}, "--prune-params half"),
        ({"ratio": 0.3, "criterion": "l3"}, "criterion l3: choose from auto"),
        ({"ratio": 0.3, "allocation": "even"}, "allocation even"),
        ({"ratio": 0.3, "normalization": "median"}, "normalization median"),
        ({"ratio": 0.3, "schedule": "cosine"}, "schedule cosine"),
        ({"ratio": 0.3, "recovery": "magic"}, "recovery magic"),
        ({"ratio": 0.3, "steps": 0}, "steps 0"),
        ({"ratio": 0.3, "alignment": 1.5}, "alignment 1.5"),
        ({"ratio": 0.3, "ridge": 0}, "ridge 0"),
        ({"ratio": 0.3, "criterion": "apoz"}, "criterion apoz needs data"),
        ({"ratio": 0.3, "recovery": "least-squares"}, "recovery by least-squares needs data"),
        ({"ratio": 0.3, "allocation": "sensitivity"}, "allocation by sensitivity needs data"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")) as caught:
        PruneConfig(**options)
    assert "\n" not in str(caught.value)


def test_auto_depends_on_data() -> None:
    without, given = PruneConfig(ratio=0.3), PruneConfig(ratio=0.3, calibration="pictures/")
    assert (without.chosen_criterion, without.chosen_recovery) == ("l2", "none")
    assert (given.chosen_criterion, given.chosen_recovery) == ("reconstruction", "least-squares")
    assert PruneConfig(ratio=0.3, calibration="random").chosen_criterion == "l2"


def test_choices_are_those_that_the_passes_know() -> None:
    from tinsmith.compiler.pruning.config import NORMALIZATIONS, SCHEDULES

    assert set(NORMALIZATIONS) == set(KNOWN)
    assert set(SCHEDULES) == set(KNOWN_SCHEDULES)


def test_it_is_plain_data_in_the_configuration() -> None:
    config = tinsmith.CompileConfig(pruning=PruneConfig(flops=0.5, calibration=[1.0]))
    assert json.loads(json.dumps(config.to_dict()))["pruning"]["flops"] == 0.5
    assert config.to_dict()["pruning"]["calibration"] == "list"
    with pytest.raises(ConfigError, match="must be a PruneConfig"):
        tinsmith.CompileConfig(pruning=0.3)
