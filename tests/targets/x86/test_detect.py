"""Describing a machine from what Linux says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinsmith.targets.x86 import detect
from tinsmith.targets.x86.detect import DetectionError, detect_native
from tinsmith.targets.x86.specs import X86_64_V3, X86_64_V4


def _machine(folder: Path, flags: frozenset[str]) -> tuple[Path, Path]:
    cpuinfo = folder / "cpuinfo"
    cpuinfo.write_text(
        f"processor\t: 0\nmodel name\t: Test CPU\nflags\t\t: {' '.join(sorted(flags))}\n\n"
        "processor\t: 1\nflags\t\t: none\n"
    )
    caches = folder / "cache"
    for i, (level, kind, size) in enumerate(
        [(1, "Data", "48K"), (1, "Instruction", "32K"), (2, "Unified", "2048K"),
         (3, "Unified", "36M")]
    ):  # fmt: skip
        index = caches / f"index{i}"
        index.mkdir(parents=True)
        (index / "level").write_text(f"{level}\n")
        (index / "type").write_text(f"{kind}\n")
        (index / "size").write_text(f"{size}\n")
    return cpuinfo, caches


@pytest.fixture(autouse=True)
def _on_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect.platform, "machine", lambda: "x86_64")


def test_avx512_with_amx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "request_tiles", lambda: True)
    flags = X86_64_V4.cpu_features | {"amx_tile", "amx_int8", "amx_bf16", "avx512_vnni", "sse2"}
    spec = detect_native(*_machine(tmp_path, flags))
    assert spec.name == "native"
    assert spec.vector_bits == 512
    assert spec.llvm_cpu == "x86-64-v4"
    assert {"+amx-tile", "+amx-int8", "+amx-bf16", "+avx512vnni"} <= set(spec.llvm_attributes)
    assert "-prefer-256-bit" in spec.llvm_attributes
    assert spec.cpu_features == flags - {"sse2"}
    assert (spec.l1_bytes, spec.l2_bytes, spec.l3_bytes) == (48 << 10, 2 << 20, 36 << 20)
    assert "Test CPU" in spec.description
    assert spec.cores >= 1
    assert not spec.bfloat16


def test_bfloat16_is_used_in_wide_registers(tmp_path: Path) -> None:
    for level in (X86_64_V3, X86_64_V4):
        folder = tmp_path / level.name
        folder.mkdir()
        spec = detect_native(*_machine(folder, level.cpu_features | {"avx512_bf16"}))
        assert spec.bfloat16 == (level is X86_64_V4)


def test_tiles_that_the_kernel_does_not_permit_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "request_tiles", lambda: False)
    flags = X86_64_V4.cpu_features | {"amx_tile", "amx_int8", "avx512_vnni"}
    spec = detect_native(*_machine(tmp_path, flags))
    assert spec.cpu_features == X86_64_V4.cpu_features | {"avx512_vnni"}
    assert not any("amx" in attribute for attribute in spec.llvm_attributes)


def test_avx2_only(tmp_path: Path) -> None:
    flags = X86_64_V3.cpu_features | {"avx_vnni", "avx512f"}
    spec = detect_native(*_machine(tmp_path, flags))
    assert spec.llvm_cpu == "x86-64-v3"
    assert spec.vector_bits == 256
    assert "+avxvnni" in spec.llvm_attributes
    assert not any("512" in attribute for attribute in spec.llvm_attributes)


def test_too_old(tmp_path: Path) -> None:
    with pytest.raises(DetectionError, match=r"lacks .*avx2"):
        detect_native(*_machine(tmp_path, frozenset({"sse2", "avx"})))


def test_no_cpuinfo(tmp_path: Path) -> None:
    with pytest.raises(DetectionError, match="cannot be read"):
        detect_native(tmp_path / "none", tmp_path)


def test_caches_unknown(tmp_path: Path) -> None:
    cpuinfo, _ = _machine(tmp_path, X86_64_V3.cpu_features)
    assert detect_native(cpuinfo, tmp_path / "none").l2_bytes == X86_64_V3.l2_bytes


def test_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect.platform, "machine", lambda: "aarch64")
    with pytest.raises(DetectionError, match="this machine is aarch64"):
        detect_native()
