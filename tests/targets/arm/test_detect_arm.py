"""Describing ARM machines from what Linux reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinsmith.targets.arm import detect
from tinsmith.targets.arm.detect import detect_native
from tinsmith.targets.arm.specs import CORTEX_A53
from tinsmith.targets.registry import backend_of, get_target, target_names
from tinsmith.targets.spec import DetectionError

_PI_5 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull crc32 atomics fphp asimdhp cpuid lrcpc asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

processor\t: 1
Features\t: none
"""
_PI_2 = """processor\t: 0
model name\t: ARMv7 Processor rev 5 (v7l)
Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm
CPU implementer\t: 0x41
CPU part\t: 0xc07
"""


def _detected(
    monkeypatch: pytest.MonkeyPatch, folder: Path, machine: str, cpuinfo: str
) -> detect.TargetSpec:
    monkeypatch.setattr(detect.platform, "machine", lambda: machine)
    (folder / "cpuinfo").write_text(cpuinfo)
    return detect_native(folder / "cpuinfo", folder)


def test_aarch64_with_dot_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _detected(monkeypatch, tmp_path, "aarch64", _PI_5)
    assert (spec.name, spec.llvm_cpu, spec.architecture) == ("native", "cortex-a76", "aarch64")
    assert spec.cpu_features == CORTEX_A53.cpu_features | {"asimddp", "asimdhp"}
    assert {"+neon", "+dotprod", "+fullfp16"} == set(spec.llvm_attributes)
    assert spec.l2_bytes == CORTEX_A53.l2_bytes
    assert "cortex-a76" in spec.description and "asimddp" in spec.description
    assert backend_of(spec).formats.activation == "int8"


def test_an_unknown_maker_gets_generic_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _PI_5.replace("0x41", "0x61").replace("asimddp", "asimddp i8mm bf16")
    spec = _detected(monkeypatch, tmp_path, "aarch64", other)
    assert spec.llvm_cpu == "generic"
    assert {"+i8mm", "+bf16"} <= set(spec.llvm_attributes)


def test_armv7(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _detected(monkeypatch, tmp_path, "armv7l", _PI_2)
    assert (spec.llvm_cpu, spec.pointer_bits) == ("cortex-a7", 32)
    assert spec.link_triple == "arm-linux"


def test_without_neon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DetectionError, match="lacks neon"):
        _detected(monkeypatch, tmp_path, "armv6l", _PI_2.replace(" neon", ""))
    with pytest.raises(DetectionError, match="this machine is riscv64"):
        _detected(monkeypatch, tmp_path, "riscv64", _PI_2)


def test_the_registry_asks_the_family_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(detect, "first_processor", lambda _: {"Features": "fp asimd"})
    assert get_target("native").architecture == "aarch64"
    assert target_names()[0] == "native"
    monkeypatch.setattr(detect.platform, "machine", lambda: "s390x")
    assert "native" not in target_names()
