"""The embedded demo, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from tinsmith.compiler.cli import app


def test_demo_compiles_verifies_evaluates_and_benchmarks(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    result = CliRunner().invoke(app, ["demo", "-o", str(out), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["verify"]["agrees"]
    # What PyTorch reaches on these 1,000 images is in compiler/demo/README.md: 943 of them.
    assert report["accuracy"] == {"top1": 0.943, "images": 1000}
    labels = [timing["label"] for timing in report["bench"]["timings"]]
    assert labels[0] == "Tinsmith"
    assert set(labels) | set(report["bench"]["missing"]) == {"Tinsmith", "ONNX Runtime", "OpenVINO"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["measured"]["accuracy"]["top1"] == 0.943
    assert manifest["measured"]["latency"]["median_ms"] > 0
    # The library with its weights: not much more than the parameters, of which Winograd's
    # algorithm, where the machine is faster with it, makes up to four times as many.
    winograd = any("winograd" in kernel["template"] for kernel in manifest["kernels"])
    most = 315_114 * 4 * (4 if winograd else 1) + 512 * 1024
    assert (out / "model.so").stat().st_size < most
