"""One module for several levels of a family: written at once, the best one is taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import tinsmith
from tinsmith.compiler.api import CompileReport, compile_to
from tinsmith.compiler.cli import app
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.errors import ArtifactError, ConfigError, TargetError
from tinsmith.compiler.levels import ordered_levels
from tinsmith.compiler.module import machine
from tinsmith.compiler.module.levels import copy_level, level_folder, levels_of
from tinsmith.compiler.module.loader import load, verify_files
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.targets.registry import get_target
from tinsmith.targets.x86.specs import X86_64_V3, X86_64_V4

pytestmark = pytest.mark.skipif(
    not X86_64_V3.cpu_features <= machine.cpu_features(), reason="needs x86-64-v3"
)
V3, V4 = "x86-64-v3", "x86-64-v4"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> CompileReport:
    """A matrix product, for three levels."""
    weights = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 32])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    folder = tmp_path_factory.mktemp("levels")
    onnx.checker.check_model(model)
    config = CompileConfig(static_library=False, runner=False, tuned=False)
    return compile_to(model, folder / "m", target=[V4, "native", V3], config=config)


def features(monkeypatch: pytest.MonkeyPatch, features: frozenset[str]) -> None:
    monkeypatch.setattr(machine, "cpu_features", lambda: features)


def test_the_folder_is_the_lowest_level_and_holds_the_others(report: CompileReport) -> None:
    names = [level.name for level in levels_of(report.path)]
    assert names[0] == V3
    assert sorted(names) == sorted([V3, V4, "native"])
    assert json.loads((report.path / "manifest.json").read_text())["target"]["name"] == V3
    assert any(note.startswith("levels x86-64-v3, ") for note in report.notes)


def test_the_best_level_that_the_machine_has_is_taken(
    report: CompileReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = levels_of(report.path)[-1].name
    features(monkeypatch, get_target("native").cpu_features | X86_64_V4.cpu_features)
    assert level_folder(report.path).name == best
    features(monkeypatch, X86_64_V3.cpu_features)
    plain = get_target("native").cpu_features == X86_64_V3.cpu_features
    assert level_folder(report.path) == (
        report.path / "levels" / "native" if plain else report.path
    )
    features(monkeypatch, frozenset())
    with pytest.raises(ArtifactError, match=f"compiled for {V3}, this CPU lacks avx"):
        load(report.path)


def test_every_level_that_runs_here_computes_the_same(report: CompileReport) -> None:
    x = np.random.default_rng(1).standard_normal((2, 16)).astype(np.float32)
    results = []
    for level in levels_of(report.path):
        if not level.refusal:
            with load(report.path, level=level.name) as module:
                assert module.manifest.target.name == level.name
                results.append(module(x)["y"])
    assert len(results) >= 2
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-5)
    with tinsmith.load(report.path) as module:
        np.testing.assert_allclose(module(x)["y"], results[0], rtol=1e-5)


def test_weights_that_are_equal_are_there_once(report: CompileReport, tmp_path: Path) -> None:
    lowest, *others = levels_of(report.path)
    digest = json.loads((lowest.folder / "manifest.json").read_text())["files"]["weights.bin"]
    for level in others:
        files = json.loads((level.folder / "manifest.json").read_text())["files"]
        shared = not (level.folder / "weights.bin").exists()
        assert shared == (files["weights.bin"] == digest)
    verify_files(report.path)
    alone = copy_level(report.path, "native", tmp_path / "alone")
    assert load(alone).manifest.target.name == "native"


def test_a_damaged_level_is_found(report: CompileReport, tmp_path: Path) -> None:
    copied = tmp_path / "m"
    shutil.copytree(report.path, copied)
    library = copied / "levels" / V4 / "model.so"
    library.write_bytes(library.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match="does not match its digest"):
        verify_files(copied)
    (copied / "levels.json").write_text('{"format": 1, "levels": ["../m"]}')
    with pytest.raises(ArtifactError, match=r"levels.json: damaged"):
        load(copied)
    (copied / "levels.json").write_text('{"format": 2, "levels": ["native"]}')
    with pytest.raises(ArtifactError, match="this Tinsmith reads format 1"):
        load(copied)


def test_what_cannot_be_one_module_is_refused(report: CompileReport, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cortex-a76 is aarch64, x86-64-v3 is x86_64"):
        ordered_levels((V3, "rpi5"))
    with pytest.raises(ConfigError, match="x86-64-v3 is there twice"):
        ordered_levels((V3, V4, "avx2"))
    with pytest.raises(TargetError, match="unknown target ''"):
        ordered_levels((V3, ""))
    pruned = CompileConfig(target=f"{V3},{V4}", pruning=PruneConfig(ratio=0.5))
    with pytest.raises(ConfigError, match="prune first"):
        compile_to("model.onnx", tmp_path / "m", config=pruned)
    with pytest.raises(ConfigError, match="is a module for several targets"):
        tinsmith.pack(report.path, tmp_path / "m.zst")
    with pytest.raises(ConfigError, match=f"has no level 'v9'; it has {V3}, "):
        load(report.path, level="v9")


def test_the_command_line_shows_levels_and_verifies_each(report: CompileReport) -> None:
    done = CliRunner().invoke(app, ["verify", str(report.path), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)["levels"]
    assert set(told) == {V3, V4, "native"} - {level_folder(report.path).name}
    bad = CliRunner().invoke(app, ["bench", str(report.path), "--level", "v9", "--json"])
    assert bad.exit_code == 2
