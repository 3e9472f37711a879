"""Targets by name."""

from __future__ import annotations

import dataclasses

import pytest

from tinsmith.targets.registry import get_target, target_names
from tinsmith.targets.spec import UnknownTargetError


def test_every_name_is_found() -> None:
    for name in target_names():
        spec = get_target(name)
        assert spec.name == name
        assert spec.vector_bits % 128 == 0
        assert spec.float_lanes * 32 == spec.vector_bits
        assert spec.description


def test_the_boards_are_there() -> None:
    assert {"x86-64-v3", "x86-64-v4", "cortex-a53", "cortex-a72", "cortex-a76", "cortex-a7"} <= set(
        target_names()
    )
    assert get_target("cortex-a7").pointer_bits == 32
    assert get_target("cortex-a72").architecture == "aarch64"


def test_specs_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_target("cortex-a72").cores = 64  # type: ignore[misc]


def test_an_unknown_name_suggests_another() -> None:
    with pytest.raises(UnknownTargetError, match="unknown target 'cortex-a71'; did you mean 'cor"):
        get_target("cortex-a71")
    with pytest.raises(UnknownTargetError, match=r"known: .*x86-64-v3"):
        get_target("")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "CUDA", "sm_90a", "nvptx64"])
def test_a_gpu_is_told_to_be_none_of_them(name: str) -> None:
    with pytest.raises(UnknownTargetError, match=r"no kernels for GPUs.*x86-64-v3") as error:
        get_target(name)
    assert "\n" not in str(error.value)
