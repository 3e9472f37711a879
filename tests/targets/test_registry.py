"""Targets by name."""

from __future__ import annotations

import dataclasses

import pytest

from tinsmith.targets.registry import get_target, target_aliases, target_names
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


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("rpi3", "cortex-a53"),
        ("rpi4", "cortex-a72"),
        ("Raspberry Pi 4", "cortex-a72"),
        ("raspberrypi4", "cortex-a72"),
        ("rpi5", "cortex-a76"),
        ("graviton3", "neoverse-v1"),
        ("Cortex_A76", "cortex-a76"),
        ("AVX2", "x86-64-v3"),
        ("x86_64_v4", "x86-64-v4"),
    ],
)
def test_boards_go_by_what_people_call_them(written: str, name: str) -> None:
    assert get_target(written).name == name


def test_an_alias_names_a_target_and_hides_none() -> None:
    assert set(target_aliases().values()) <= set(target_names())
    for name in target_names():
        assert get_target(name).name == name


def test_a_name_near_an_alias_is_suggested() -> None:
    with pytest.raises(UnknownTargetError, match="did you mean 'rpi4'"):
        get_target("rpi44")
