"""A quantised module is judged by its own graph, and beside the float model by its promise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

import tinsmith
from tinsmith.compiler.cli import app
from tinsmith.compiler.evaluate.float_model import judge, measure
from tinsmith.compiler.evaluate.peers import OnnxRuntime, installed
from tinsmith.compiler.evaluate.verify import verify

FLOATS = np.linspace(-1, 1, 100, dtype=np.float32)


def arrays(noise: float) -> dict[str, np.ndarray]:
    """A float output with noise of that share of its range, and classes of which one changes."""
    signs = np.where(np.arange(100) % 2, 1, -1).astype(np.float32)
    classes = np.arange(100)
    if noise:
        classes[0] = 9
    return {"y": FLOATS + np.float32(noise) * signs, "classes": classes}


def test_distances_are_measured_by_kind() -> None:
    assert measure(arrays(0), arrays(0)) == {"y": {"sqnr_db": None}, "classes": {"equal": 1.0}}
    found = measure(arrays(0.01), arrays(0))
    assert found["y"]["sqnr_db"] == pytest.approx(35.3, abs=0.1)
    assert found["classes"]["equal"] == 0.99
    lost = {"y": np.full(100, np.nan, np.float32), "classes": np.arange(100)}
    assert "y" not in measure(lost, arrays(0))


@pytest.mark.parametrize(
    ("noise", "promised", "kept"),
    [(0.01, 0.01, True), (0.011, 0.01, True), (0.02, 0.01, False), (0.5, 0.01, False),
     (0.0, 0.01, True), (0.0, 0.0, True), (1e-6, 0.0, True), (0.01, 0.0, False)],
)  # fmt: skip
def test_promises_are_kept_or_broken(noise: float, promised: float, kept: bool) -> None:
    promises = json.loads(json.dumps(measure(arrays(promised), arrays(0))))
    floats, classes = judge(arrays(noise), arrays(0), promises)
    assert floats.agrees is kept, (floats.told, floats.promise_told)
    assert classes.agrees
    wrong = arrays(noise) | {"classes": np.zeros(100, np.int64)}
    assert judge(wrong, arrays(0), promises)[1].agrees is False


def test_without_a_promise_nothing_is_judged() -> None:
    assert [distance.agrees for distance in judge(arrays(0.5), arrays(0), None)] == [None, None]


@pytest.mark.skipif(not installed(OnnxRuntime), reason="ONNX Runtime is not installed")
def test_verify_judges_a_quantised_module_by_what_it_is(
    small_model_file: Path, tmp_path: Path
) -> None:
    options = tinsmith.QuantizationConfig(calibration="random", samples=4, fallback=False)
    folder = tmp_path / "m"
    tinsmith.compile_to(
        small_model_file, folder, quantization=options, runner=False, static_library=False
    )
    report = verify(folder, small_model_file, samples=1)
    assert report.agrees and report.reduced == "int8"
    assert [check.inputs for check in report.float_checks] == ["golden vectors", "random, seed 1"]
    promised, fresh = (check.distances[0] for check in report.float_checks)
    assert promised.agrees and 10 < promised.sqnr_db == pytest.approx(promised.promised, abs=0.1)
    assert fresh.agrees is None and 5 < fresh.sqnr_db < 60
    assert report.report["output_sqnr_db"] > 10

    arguments = ["verify", str(folder), "--samples", "1", "--model"]
    shown = CliRunner().invoke(app, [*arguments, str(small_model_file)])
    assert shown.exit_code == 0, shown.output
    assert "beside the float model" in shown.output and "dB" in shown.output
    document = json.loads(
        CliRunner().invoke(app, [*arguments, str(small_model_file), "--json"]).stdout
    )
    assert document["agrees"] and document["reduced"] == "int8"
    assert document["float_model"][0]["outputs"][0]["promised_sqnr_db"] > 10

    # Other weights: the promise was about these.
    model = onnx.load(small_model_file)
    weights = numpy_helper.to_array(model.graph.initializer[0])
    turned = numpy_helper.from_array(np.ascontiguousarray(weights[::-1]), "w1")
    model.graph.initializer[0].CopyFrom(turned)
    other = tmp_path / "other.onnx"
    onnx.save(model, other)
    broken = verify(folder, other, samples=1)
    assert not broken.agrees and broken.float_checks[0].distances[0].agrees is False
    assert CliRunner().invoke(app, [*arguments, str(other)]).exit_code == 1


@pytest.mark.slow
@pytest.mark.skipif(not installed(OnnxRuntime), reason="ONNX Runtime is not installed")
@pytest.mark.parametrize("kind", ["bf16", "pruned", "int8-weights", "pruned int8"])
def test_every_reduction_keeps_its_promise(
    kind: str, small_model_file: Path, tmp_path: Path
) -> None:
    options: dict[str, object] = {}
    if "pruned" in kind:
        options["pruning"] = tinsmith.PruneConfig(ratio=0.5, calibration="random", samples=4)
    if kind != "pruned":
        options["quantization"] = tinsmith.QuantizationConfig(
            format=kind.split()[-1], calibration="random", samples=4, min_weights=1
        )
    tinsmith.compile_to(
        small_model_file, tmp_path / "m", runner=False, static_library=False, **options
    )
    report = verify(tmp_path / "m", small_model_file, samples=1)
    assert report.agrees and report.reduced == kind.replace(" ", ", ")
    assert all(distance.agrees for distance in report.float_checks[0].distances)
