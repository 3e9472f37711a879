"""Modules of every format that has existed, as they were written, load and compute for good.

`formats/` holds one archive for each: `tiny` (a product of [2, 4] and a constant [4, 3], then the
positive part) for x86-64-v3, and one in VM form. A new format gets one more; none is made anew.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tinsmith.compiler.evaluate.verify import verify
from tinsmith.compiler.module.loader import folder_of, load
from tinsmith.compiler.module.manifest import FORMAT, OLDEST_FORMAT, read_manifest
from tinsmith.targets.machine_at_hand import first_processor, process_architecture

FOLDER = Path(__file__).parent / "formats"
ARCHIVES = sorted(FOLDER.glob("*.tar.zst"))
NEEDED = {"avx2", "bmi2", "fma"}


def by_name(archive: Path) -> str:
    return archive.name.removesuffix(".tar.zst")


def runs_here() -> bool:
    flags = first_processor().get("flags", "") if process_architecture() == "x86_64" else ""
    return set(flags.split()) >= NEEDED


def test_every_format_has_a_module() -> None:
    numbers = {int(by_name(archive).split("_")[1]) for archive in ARCHIVES}
    assert numbers == set(range(OLDEST_FORMAT, FORMAT + 1))


@pytest.mark.parametrize("archive", ARCHIVES, ids=by_name)
def test_its_manifest_is_read(archive: Path) -> None:
    with folder_of(archive) as folder:
        manifest = read_manifest(folder)
    assert manifest.format == FORMAT
    assert manifest.passes[0].name == "canonicalize"
    assert manifest.measured.latency is not None and manifest.measured.latency.median_ms > 0
    for kernel in manifest.kernels:
        assert kernel.template == "matmul" and kernel.flops == 48 and kernel.decisions


@pytest.mark.skipif(not runs_here(), reason="the modules are for x86-64-v3")
@pytest.mark.parametrize("archive", ARCHIVES, ids=by_name)
def test_it_computes_what_it_did(archive: Path) -> None:
    x = np.array([[1, -2, 3, 0], [0, 0, -1, 4]], np.float32)
    with load(archive, threads=2) as module:
        found = module(x=x)["y"]
        steps = module.profile([x])
    if module.manifest.form == "vm":
        np.testing.assert_array_equal(found, np.nonzero(x))
    else:
        weights = (np.arange(12, dtype=np.float32).reshape(4, 3) - 5) / 4
        np.testing.assert_allclose(found, np.maximum(x @ weights, 0))
        assert [step.kernel for step in steps] == ["fused_matmul_relu"]
    assert verify(archive).agrees
