"""Known pitfalls, each on a machine or an installation that has it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tinsmith.compiler import doctor
from tinsmith.compiler.doctor import Health, Package, Place, examine


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Health:
    """A machine without any pitfall, but that its TVM is not tried."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "_tried", lambda module: ("0.27", ()))
    monkeypatch.setattr(doctor, "_quota", lambda: None)
    monkeypatch.setattr(doctor, "_GOVERNOR", tmp_path / "none")
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    found = examine()
    assert found.works
    return replace(found, features=("avx2", "avx512_vnni"), vector_bits=256)


def problems(found: Health) -> str:
    return " | ".join(pitfall.problem for pitfall in doctor._of_machine(found))


def test_machines(told: Health, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert problems(told) == ""
    assert "no VNNI" in problems(replace(told, features=("avx2",)))
    assert "no target: none" in problems(replace(told, vector_bits=0, target="none"))
    assert "0.5 processors' time on 2" in problems(replace(told, quota=0.5, usable=2))
    assert problems(replace(told, quota=2.0, usable=2)) == ""
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 0.0, 0.0))
    assert "busy (load 9.0 on 2" in problems(replace(told, usable=2))
    (tmp_path / "governor").write_text("powersave\n")
    monkeypatch.setattr(doctor, "_GOVERNOR", tmp_path / "governor")
    assert "powersave" in problems(told)


def test_installations(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"apache-tvm-ffi": "0.1.15", "xgboost": "3.0", "xgboost-cpu": "3.0"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    packages = (Package("blake3", None, ()), Package("openvino", None, ("bench",)))
    found = {p.problem.split()[0]: p for p in doctor._of_packages(packages)}
    assert found["blake3"].fatal and found["apache-tvm-ffi"].fatal
    assert "<0.1.15" in found["apache-tvm-ffi"].remedy
    assert not found["openvino"].fatal and not found["xgboost-cpu"].fatal


def test_a_package_that_ends_the_process_is_told() -> None:
    version, pitfalls = doctor._tried("no_such_package_anywhere")
    assert version == "" and "ModuleNotFoundError" in pitfalls[0].problem and pitfalls[0].fatal


def test_folders(tmp_path: Path) -> None:
    good = doctor._place("temporary files", tmp_path / "not" / "yet")
    assert good.writable and good.free_bytes > 0
    (tmp_path / "file").touch()
    assert not doctor._place("records", tmp_path / "file" / "below").writable
    places = (Place("records", "/full", True, 1), Place("caches", "/locked", False, 9), good)
    found = " | ".join(pitfall.problem for pitfall in doctor._of_places(places))
    assert "/full: 0.0 GiB left" in found and "/locked cannot be written" in found


def test_quotas_of_control_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_CGROUP", tmp_path)
    assert doctor._quota() is None
    for text, quota in (("max 100000", None), ("150000 100000", 1.5), ("nonsense", None)):
        (tmp_path / "cpu.max").write_text(text)
        assert doctor._quota() == quota


def test_an_installation_that_lacks_libraries_is_examined() -> None:
    """It is what doctor is for: nothing but the command line itself may be needed."""
    code = (
        "import sys\n"
        "for name in ('numpy', 'msgspec', 'blake3', 'zstandard', 'onnx', 'tvm', 'scipy'):\n"
        "    sys.modules[name] = None\n"
        "from tinsmith.compiler.cli import main\n"
        "sys.argv = ['tinsmith', 'doctor']\n"
        "main()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Tinsmith" in ran.stdout and "native target" in ran.stdout, ran.stderr
