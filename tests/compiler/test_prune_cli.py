"""Pruning from the command line: what is written and printed, and one line for every mistake."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tinsmith.compiler.cli import app
from tinsmith.compiler.demo import IMAGES
from tinsmith.compiler.evaluate.accuracy import LabelledImages


def tinsmith(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(arguments: tuple[object, ...], message: str) -> None:
    """Exactly one line on standard error, which mentions this."""
    result = tinsmith(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert message in lines[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 of the demo's images as the residual model takes them."""
    path = tmp_path_factory.mktemp("data") / "images.npy"
    images = LabelledImages.read(IMAGES).images[:120, None].astype("float32") / np.float32(255)
    np.save(path, images)
    return path


def test_a_pruned_module_is_written_and_reported(
    residual_model_file: Path, data: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    result = tinsmith(
        *("compile", residual_model_file, "--shape", "image=1,1,28,28", "--threads", 1),
        *("--prune", 0.5, "--prune-criterion", "l2", "--recover", "none"),
        *("--calibration", data, "--samples", 30, "-o", tmp_path / "out", "--report", report),
    )
    assert result.exit_code == 0, result.output
    assert "pruned by l2" in result.stdout
    assert "importance kept" in result.stdout
    written = json.loads(report.read_text())
    assert written["params"][1] < 0.6 * written["params"][0]
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_a_checkpoint_is_pruned_again_and_compiled(
    residual_model_file: Path, data: Path, tmp_path: Path
) -> None:
    once, twice = tmp_path / "once.tinsmith", tmp_path / "twice.onnx"
    options = ("--threads", 1, "--calibration", data, "--samples", 20, "--json")
    first = tinsmith(
        "prune",
        residual_model_file,
        "--shape",
        "image=1,1,28,28",
        "--ratio",
        0.3,
        *options,
        "-o",
        once,
    )
    assert first.exit_code == 0, first.output
    left = json.loads(first.stdout)["params"][1]
    second = tinsmith("prune", once, "--ratio", 0.5, *options, "-o", twice)
    assert second.exit_code == 0, second.output
    assert json.loads(second.stdout)["params"][0] == left > json.loads(second.stdout)["params"][1]
    built = tinsmith("compile", once, "--threads", 1, "-o", tmp_path / "out")
    assert built.exit_code == 0, built.output
    assert "pruned before, from" in built.stderr
    tuned = tinsmith(
        *("tune", once, "--threads", 1, "--minutes", 60, "--trials", 2, "--tasks", 1),
        *("--log", tmp_path / "log", "--json"),
    )
    assert tuned.exit_code == 0, tuned.output
    assert json.loads(tuned.stdout)["trials"] > 0
    fails(("verify", tmp_path / "out", "--model", once), "is a checkpoint, which no other runtime")
    fails(
        ("prune", residual_model_file, "--ratio", 0.3, "-o", tmp_path / "p.pt"),
        "ends in .onnx or .tinsmith",
    )


def test_a_sparse_module_is_reported_layer_by_layer(
    residual_model_file: Path, data: Path, tmp_path: Path
) -> None:
    result = tinsmith(
        *(
            "compile",
            residual_model_file,
            "--shape",
            "image=1,1,28,28",
            "--threads",
            1,
            "--sparsity",
            "2:4",
        ),
        *("--calibration", data, "--samples", 30, "-o", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.output
    assert "50.0%" in result.stdout and "groups" not in result.stdout
    assert "of the weights zero (smaller packed, no faster), same top-1 on" in result.stdout
    assert "note: weights that are zero make the module no faster" in result.stderr


def test_mistakes_are_one_line_each(residual_model_file: Path, data: Path, tmp_path: Path) -> None:
    command = ("compile", residual_model_file, "--shape", "image=1,1,28,28", "-o", tmp_path / "out")
    fails((*command, "--prune", 1.0), "--prune 1.0: expected a number between 0 and 1")
    fails((*command, "--prune-flops", 0), "--prune-flops 0.0: expected a number between 0 and 1")
    fails((*command, "--prune", 0.3, "--prune-params", 0.5), "--prune, --prune-params: give one")
    fails((*command, "--recover", "distill"), "--recover is for pruning: add --prune")
    fails((*command, "--prune", 0.3, "--recover", "magic"), "choose from auto, none")
    fails((*command, "--prune", 0.3, "--augment", "tilt", "--calibration", data), "--augment tilt")
    fails((*command, "--prune", 0.3, "--recover", "distill"), "needs data: pass --calibration")
    fails((*command, "--calibration", data), "add --quantize int8")
    fails((*command, "--sparsity", "5:4"), "--sparsity 5:4: expected a share between 0 and 1")
    fails((*command, "--sparsity", "0.5", "--recover", "distill"), "add a goal such as --prune")
    wide = tmp_path / "wide.npy"
    np.save(wide, np.zeros((4, 1, 30, 30), np.float32))
    fails((*command, "--prune", 0.3, "--calibration", wide), "30")
    few = ("--prune-params", 0.001, "--calibration", data, "--samples", 4, "--recover", "none")
    fails((*command, *few), "cannot be reached; with all groups at their narrowest")


def test_sensitivity_prints_curves(residual_model_file: Path, data: Path, tmp_path: Path) -> None:
    command = (
        *("sensitivity", residual_model_file, "--shape", "image=1,1,28,28", "--calibration", data),
        *("--samples", 40, "--ratios", "0.5", "--prune-criterion", "l2", "--threads", 1),
    )
    plot = tmp_path / "curves.svg"
    drawn = importlib.util.find_spec("matplotlib") is not None
    result = tinsmith(*command, "--json", *(("--plot", plot) if drawn else ()))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["measure"] == "agreement" and found["whole"] == 1.0
    assert len(found["groups"]) > 3
    assert all(0 <= q <= 1 for group in found["groups"] for _, q in group["points"])
    assert min(q for group in found["groups"] for _, q in group["points"]) < 1
    if drawn:
        assert "<svg" in plot.read_text()
    else:
        fails((*command, "--plot", plot), "pip install 'tinsmith[plot]'")
    fails((*command[:-6], "--ratios", "0.5,2"), "--ratios 0.5,2: expected numbers between 0 and 1")
    fails((*command, "--plot", "curves.gif"), "ends in .png or .svg")
