"""Files that are no ONNX files: what they are is told with the tool that makes ONNX of them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import tinsmith
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.foreign_files import told_by_content, told_of_foreign
from tinsmith.compiler.frontends.onnx.files import read_model

NAMES = {
    "m.pt": "torch.onnx.export",
    "m.PTH": "torch.onnx.export",
    "m.pt2": "torch.export.load('m.pt2')",
    "m.tflite": "tf2onnx.convert --tflite m.tflite",
    "frozen.pb": "tf2onnx.convert --graphdef frozen.pb",
    "m.h5": "keras",
    "m.keras": "keras",
    "m.safetensors": "optimum-cli",
    "m.gguf": "llama.cpp",
    "m.caffemodel": "caffe2onnx",
    "m.mlmodel": "onnxmltools",
    "m.pdmodel": "paddle2onnx",
    "m.pkl": "skl2onnx",
}


@pytest.mark.parametrize(("name", "tool"), NAMES.items())
def test_each_kind_names_its_tool_in_one_line(name: str, tool: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x0a\x80 anything but ONNX")
    told = told_by_content(path)
    assert told is not None and tool in told and "\n" not in told and "{" not in told
    with pytest.raises(ModelError) as caught:
        read_model(path)
    assert str(caught.value) == f"{path}: {told}"
    with pytest.raises(tinsmith.ModelError, match=name):
        tinsmith.compile(path)


def test_content_tells_more_than_a_name(tmp_path: Path) -> None:
    for content, kind in ((b"GGUF\x03", "llama.cpp"), (b"\x89HDF\r\n\x1a\n", "Keras")):
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        assert kind in (told_by_content(path) or "")


def test_onnx_files_are_read_whatever_they_are_called(
    tmp_path: Path, small_model_file: Path
) -> None:
    path = tmp_path / "model.pb"
    path.write_bytes(small_model_file.read_bytes())
    assert told_by_content(path) is None
    assert read_model(path) == onnx.load(small_model_file)


def test_folders_of_tensorflow_and_others(tmp_path: Path) -> None:
    assert told_by_content(tmp_path) is None
    (tmp_path / "saved_model.pb").touch()
    assert "tf2onnx.convert --saved-model" in (told_by_content(tmp_path) or "")
    assert told_of_foreign(Path("model.onnx")) is None
