"""The roofline's arithmetic, its cache, and a plausible measurement of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinsmith.compiler.evaluate import roofline
from tinsmith.compiler.evaluate.roofline import Roofline

ROOF = Roofline("cpu", 2, 1e9, ((1000, 8e9), (10_000, 2e9)))


def test_bandwidth_is_that_of_the_cache_the_data_fits_in() -> None:
    assert [ROOF.bytes_per_second(size) for size in (10, 1000, 1001, 10**9)] == [
        8e9,
        8e9,
        2e9,
        2e9,
    ]


def test_the_slower_ceiling_binds() -> None:
    assert ROOF.shortest_seconds(flops=1000, traffic=1000) == pytest.approx(1e-6)
    assert ROOF.shortest_seconds(flops=10, traffic=10_000) == pytest.approx(5e-6)
    assert ROOF.share(flops=1000, traffic=1000, seconds=4e-6) == pytest.approx(0.25)
    assert ROOF.share(1, 1, 0.0) == 0.0


def test_cache_is_used_and_survives_corruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def measured(threads: int, vector_bits: int) -> Roofline:
        calls.append(threads)
        return Roofline(roofline.cpu_name(), threads, 5.0, ((1, 2.0),))

    monkeypatch.setattr(roofline, "measure", measured)
    first = roofline.cached(1, 256, tmp_path)
    assert roofline.cached(1, 256, tmp_path) == first
    roofline.cached(2, 256, tmp_path)
    assert calls == [1, 2]
    (tmp_path / "roofline.json").write_text("{ not json")
    assert roofline.cached(1, 256, tmp_path) == first
    assert calls == [1, 2, 1]


def test_measuring_again_keeps_the_higher_ceilings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [
        Roofline(roofline.cpu_name(), 1, 5.0, ((1, 2.0), (9, 1.0))),
        Roofline(roofline.cpu_name(), 1, 4.0, ((1, 3.0), (9, 0.5))),
    ]
    monkeypatch.setattr(roofline, "measure", lambda threads, vector_bits: results.pop(0))
    roofline.cached(1, 256, tmp_path)
    merged = roofline.cached(1, 256, tmp_path, again=True)
    assert merged == Roofline(roofline.cpu_name(), 1, 5.0, ((1, 3.0), (9, 1.0)))
    assert roofline.cached(1, 256, tmp_path) == merged


def test_an_unwritable_cache_still_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    result = Roofline(roofline.cpu_name(), 1, 5.0, ((1, 2.0),))
    monkeypatch.setattr(roofline, "measure", lambda threads, vector_bits: result)
    assert roofline.cached(1, 256, blocker / "folder") == result


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "WINDOWS", 3)
    monkeypatch.setattr(roofline, "WORKING_SETS", (64 * 1024, 1024 * 1024))
    roof = roofline.measure(threads=1, vector_bits=128)
    # Between a slow board and ten times what any core of today can do.
    assert 1e8 < roof.flops_per_second < 1e13
    assert all(1e8 < rate < 1e13 for _, rate in roof.bandwidth)
