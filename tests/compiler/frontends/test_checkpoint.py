"""Checkpoints: what was written comes back, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tvm
import zstandard
from tvm import relax
from tvm.script import ir as I  # noqa: N812
from tvm.script import relax as R  # noqa: N812

import tinsmith
from tinsmith.compiler.errors import ModelError, ShapeError
from tinsmith.compiler.frontends.checkpoint import read_checkpoint, write_checkpoint
from tinsmith.compiler.frontends.imported import ImportedModel
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.frontends.registry import import_model

SHAPE = {"image": (1, 1, 28, 28)}


@pytest.fixture(scope="module")
def imported(residual_model_file: Path) -> ImportedModel:
    return import_onnx(residual_model_file, SHAPE)


@pytest.fixture
def checkpoint(imported: ImportedModel, tmp_path: Path) -> Path:
    path = tmp_path / "model.tinsmith"
    write_checkpoint(path, imported.module, imported, {"goal": "ratio 0.3", "criterion": "l2"})
    return path


def altered(path: Path, **fields: object) -> Path:
    """The checkpoint with other fields."""
    with zstandard.ZstdDecompressor().stream_reader(path.read_bytes()) as stream:
        content = json.loads(stream.read())
    path.write_bytes(zstandard.ZstdCompressor().compress(json.dumps(content | fields).encode()))
    return path


def test_the_graph_comes_back(imported: ImportedModel, checkpoint: Path) -> None:
    found = import_model(checkpoint)
    tvm.ir.assert_structural_equal(found.module, imported.module)
    assert found.signature == imported.signature
    assert found.output_names == imported.output_names
    assert found.output_shapes == imported.output_shapes
    assert found.notes == ("pruned before, from residual.onnx: ratio 0.3 by l2",)


def test_a_module_compiled_from_it_computes_the_same(
    residual_model_file: Path, checkpoint: Path, tmp_path: Path
) -> None:
    image = np.random.default_rng(0).standard_normal(SHAPE["image"]).astype("float32")
    settings = {"static_library": False, "runner": False, "threads": 1}
    with tinsmith.compile(checkpoint, output=tmp_path / "a", **settings) as module:
        assert module.golden() is not None
        found = module.run([image])[0]
    with tinsmith.compile(
        residual_model_file, output=tmp_path / "b", shapes=SHAPE, **settings
    ) as module:
        np.testing.assert_array_equal(found, module.run([image])[0])


def test_equal_graphs_give_equal_files(
    imported: ImportedModel, checkpoint: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.tinsmith"
    write_checkpoint(again, imported.module, imported, {"goal": "ratio 0.3", "criterion": "l2"})
    assert again.read_bytes() == checkpoint.read_bytes()


def test_shapes_and_constants_are_its_own(checkpoint: Path) -> None:
    assert read_checkpoint(checkpoint, SHAPE, {}).signature["image"][0] == SHAPE["image"]
    with pytest.raises(ShapeError, match="keeps its shapes, image=1,1,28,28"):
        read_checkpoint(checkpoint, {"image": (2, 1, 28, 28)}, {})
    with pytest.raises(ShapeError, match="--constant image"):
        read_checkpoint(checkpoint, {}, {"image": np.zeros(1)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 2}, "format 2, this Tinsmith reads format 1"),
        ({"tvm": "0.1"}, "written with TVM 0.1"),
        ({"graph": "{}"}, "damaged"),
        ({"graph": 7}, "damaged"),
        ({"inputs": []}, "1 inputs have 0 names"),
        ({"outputs": ["a", "b"]}, "1 outputs have 2 names"),
        ({"bounds": None}, "damaged"),
        ({"graph": tvm.ir.save_json(tvm.IRModule({}))}, "no graph `main` alone"),
    ],
)
def test_damaged_files_are_refused(
    checkpoint: Path, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        import_model(altered(checkpoint, **fields))
    assert str(raised.value).startswith(str(checkpoint))
    assert "\n" not in str(raised.value)


def test_other_files_are_refused(
    residual_model_file: Path, checkpoint: Path, tmp_path: Path
) -> None:
    whole, model = checkpoint.read_bytes(), residual_model_file.read_bytes()
    for content in (b"", b"not a checkpoint", whole[:-100], model):
        checkpoint.write_bytes(content)
        with pytest.raises(ModelError, match="not a checkpoint, or a truncated one"):
            import_model(checkpoint)
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        import_model(tmp_path / "absent.tinsmith")


@I.ir_module
class Foreign:
    @R.function
    def main(x: R.Tensor((2,), "float32")) -> R.Tensor((2,), "float32"):
        with R.dataflow():
            y = R.call_dps_packed("system", (x,), out_ty=R.Tensor((2,), "float32"))
            R.output(y)
        return y


def test_foreign_code_is_refused(checkpoint: Path) -> None:
    assert isinstance(Foreign["main"], relax.Function)
    with pytest.raises(ModelError, match="no operator of a model"):
        import_model(altered(checkpoint, graph=tvm.ir.save_json(Foreign)))
