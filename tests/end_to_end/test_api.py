"""The Python interface: compile, call, load elsewhere."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import tinsmith
from tinsmith.compiler.evaluate.peers import OnnxRuntime, installed

ROOT = Path(__file__).resolve().parents[2]


def test_compile_without_output_lives_as_long_as_the_module(small_model_file: Path) -> None:
    module = tinsmith.compile(small_model_file, runner=False, static_library=False, threads=1)
    folder = module.path
    assert folder.is_dir() and module.threads == 1
    image = np.ones((1, 3, 8, 8), np.float32)
    scores = module(image=image)["scores"]
    assert scores.shape == (1, 5)
    if installed(OnnxRuntime):
        expected = OnnxRuntime(small_model_file, 1, {}).run({"image": image})["scores"]
        np.testing.assert_allclose(scores, expected, atol=1e-3 * np.ptp(expected))
    del module
    gc.collect()  # its contexts refer back to it
    assert not folder.exists()


def test_compile_from_memory_with_options(small_model_file: Path, tmp_path: Path) -> None:
    config = tinsmith.CompileConfig(shapes={"image": (2, 3, 8, 8)}, golden=False, runner=False)
    report = tinsmith.compile_to(
        onnx.load(small_model_file), tmp_path / "m", config=config, static_library=False
    )
    assert report.manifest.inputs[0].shape == (2, 3, 8, 8)
    assert report.manifest.config["runner"] is False
    assert report.differences == ()
    assert not (tmp_path / "m" / "golden.bin").exists()
    assert not (tmp_path / "m" / "model.a").exists()
    loaded = tinsmith.load(tmp_path / "m", threads=1)
    assert loaded(np.zeros((2, 3, 8, 8), np.float32))["scores"].shape == (2, 5)


def test_mistakes_raise_what_they_are(small_model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(tinsmith.ConfigError, match="colour"):
        tinsmith.compile(small_model_file, colour="red")
    with pytest.raises(tinsmith.TargetError, match="vax"):
        tinsmith.compile(small_model_file, "vax")
    with pytest.raises(tinsmith.ShapeError, match="image"):
        tinsmith.compile(small_model_file, shapes={"image": (1, 4, 8, 8)})
    with pytest.raises(tinsmith.ModelError, match="nothing"):
        tinsmith.compile(tmp_path / "nothing.onnx")
    with pytest.raises(tinsmith.ArtifactError):
        tinsmith.load(tmp_path)
    with pytest.raises(tinsmith.ConfigError, match="minutes must be more than 0"):
        tinsmith.tune(small_model_file, minutes=-1)
    with pytest.raises(tinsmith.ConfigError, match="unknown option shape; did you mean shapes"):
        tinsmith.tune(small_model_file, "native", shape={})


def test_a_module_that_computes_something_else_is_reported(
    small_model_file: Path, small_module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let all references disagree, as they would after a miscompilation."""
    from tinsmith.compiler.frontends.onnx.reference import OnnxReference

    honest = OnnxReference.run

    def lying(self: OnnxReference, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: value * 1.1 for name, value in honest(self, inputs).items()}

    monkeypatch.setattr(OnnxReference, "run", lying)
    monkeypatch.setattr(OnnxReference, "_appeals", lambda *_: iter(()))
    with pytest.raises(tinsmith.VerificationError, match=r"m\.failed: .*scores.*--bisect"):
        tinsmith.compile_to(small_model_file, tmp_path / "m", runner=False, static_library=False)
    assert [path.name for path in tmp_path.iterdir()] == ["m.failed"]
    # The module that was there before stays, and a failing one takes the last failing one's place.
    shutil.copytree(small_module, tmp_path / "m")
    with pytest.raises(tinsmith.VerificationError, match=r"the module at .*m is as it was"):
        tinsmith.compile_to(small_model_file, tmp_path / "m", runner=False, static_library=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "m.failed"]
    tinsmith.load(tmp_path / "m").close()
    tinsmith.load(tmp_path / "m.failed").close()
    with pytest.raises(tinsmith.VerificationError, match="give `output` to keep it"):
        tinsmith.compile(small_model_file)


def test_files_of_the_user_do_not_come_in_between(
    small_module: Path, small_model_file: Path, tmp_path: Path
) -> None:
    """Files that are named like rooms of this package, in the folder where the user works."""
    for name in ("compiler", "passes", "targets", "tuning_logs"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')\n")
    code = (
        "import numpy, tinsmith\n"
        f"module = tinsmith.load({str(small_module)!r})\n"
        "assert module(numpy.ones((1, 3, 8, 8), numpy.float32))['scores'].shape == (1, 5)\n"
        "from tinsmith.compiler.cli import main\n"
        "main()\n"
    )
    for arguments in (
        ["bench", str(small_module), "--model", str(small_model_file), "--runs", "1"],
        ["tune", str(small_model_file), "--trials", "1", "--log", "log"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_running_a_module_needs_no_tvm(small_module: Path) -> None:
    code = (
        "import sys; sys.modules['tvm'] = None; sys.modules['onnx'] = None\n"
        "import numpy, tinsmith\n"
        f"module = tinsmith.load({str(small_module)!r})\n"
        "print(module(numpy.ones((1, 3, 8, 8), numpy.float32))['scores'].shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "(1, 5)", done.stderr
