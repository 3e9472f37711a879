"""Reading ONNX files: damaged ones and malicious ones end in one clear line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.compiler.frontends.small_models import linear_model, model, value
from tinsmith.compiler.errors import ModelError, UnsafeModelError
from tinsmith.compiler.frontends.onnx.files import read_model
from tinsmith.compiler.frontends.onnx.model import import_onnx


def _write(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def _external(folder: Path, **entries: str) -> Path:
    """The linear model with its weights in another file, as `entries` describe it."""
    proto = linear_model()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in entries.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, text
    return _write(folder / "model.onnx", proto)


def _weights(path: Path) -> np.ndarray:
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    path.write_bytes(b"\0" * 16 + array.tobytes())
    return array


def _raises(error: type[ModelError], path: Path, mentions: str) -> None:
    with pytest.raises(error) as caught:
        read_model(path)
    message = str(caught.value)
    assert mentions in message
    assert str(path) in message
    assert "\n" not in message
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("content", "mentions"),
    [
        (b"", "empty"),
        (b"this is a text, not a model", "not an ONNX file"),
        (b"\x08\x08", "no graph"),
        (linear_model().SerializeToString()[:-20], "not an ONNX file"),
    ],
)
def test_refuses_what_is_no_model(tmp_path: Path, content: bytes, mentions: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    _raises(ModelError, path, mentions)


def test_refuses_missing_files_and_folders(tmp_path: Path) -> None:
    _raises(ModelError, tmp_path / "absent.onnx", "no such file")
    _raises(ModelError, tmp_path, "directory")


@pytest.mark.parametrize("opset", [0, 10_000])
def test_refuses_unknown_operator_sets(tmp_path: Path, opset: int) -> None:
    proto = linear_model()
    proto.opset_import[0].version = opset
    _raises(ModelError, _write(tmp_path / "m.onnx", proto), f"operator set version {opset}")


def test_refuses_a_model_without_operator_set(tmp_path: Path) -> None:
    proto = linear_model()
    del proto.opset_import[:]
    _raises(ModelError, _write(tmp_path / "m.onnx", proto), "standard operator set")


def test_refuses_tensors_of_another_size_than_announced(tmp_path: Path) -> None:
    proto = linear_model()
    proto.graph.initializer[0].dims[0] = 2**40
    _raises(UnsafeModelError, _write(tmp_path / "m.onnx", proto), "needs")


def test_refuses_negative_dimensions(tmp_path: Path) -> None:
    proto = linear_model()
    proto.graph.initializer[0].dims[0] = -4
    _raises(UnsafeModelError, _write(tmp_path / "m.onnx", proto), "negative dimension")


def test_checks_tensors_inside_subgraphs(tmp_path: Path) -> None:
    lie = numpy_helper.from_array(np.zeros(3, np.float32), "lie")
    lie.dims[0] = 5
    branches = {}
    for name in ("then_branch", "else_branch"):
        node = helper.make_node("Constant", [], [name], value=lie)
        branches[name] = helper.make_graph([node], name, [], [value(name, None)])
    node = helper.make_node("If", ["condition"], ["y"], **branches)
    proto = model([node], [value("condition", [], TensorProto.BOOL)], ["y"])
    _raises(UnsafeModelError, _write(tmp_path / "m.onnx", proto), "'lie'")


def test_reads_external_data_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    array = _weights(tmp_path / "data" / "weights.bin")
    path = _external(tmp_path, location="data/weights.bin", offset="16", length="48")
    loaded = numpy_helper.to_array(read_model(path).graph.initializer[0])
    np.testing.assert_array_equal(loaded, array)
    assert import_onnx(path).output_shapes == ((1, 3),)


def test_follows_links_that_stay_inside(tmp_path: Path) -> None:
    array = _weights(tmp_path / "weights.bin")
    (tmp_path / "link.bin").symlink_to("weights.bin")
    path = _external(tmp_path, location="link.bin", offset="16")
    loaded = numpy_helper.to_array(read_model(path).graph.initializer[0])
    np.testing.assert_array_equal(loaded, array)


@pytest.mark.parametrize(
    ("location", "mentions"),
    [
        ("../secret.bin", "leaves the model's folder"),
        ("data/../../secret.bin", "leaves the model's folder"),
        ("..\\secret.bin", "leaves the model's folder"),
        ("/etc/passwd", "absolute"),
        ("C:\\secret.bin", "absolute"),
        ("link.bin", "link to a file outside"),
        ("linked/secret.bin", "link to a file outside"),
        ("data", "not a regular file"),
        ("", "not a file name"),
    ],
)
def test_refuses_data_outside_the_folder(tmp_path: Path, location: str, mentions: str) -> None:
    _weights(tmp_path / "secret.bin")
    folder = tmp_path / "model"
    (folder / "data").mkdir(parents=True)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "linked").symlink_to(tmp_path)
    path = _external(folder, location=location, offset="16", length="48")
    _raises(UnsafeModelError, path, mentions)


def test_refuses_data_that_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    _raises(UnsafeModelError, _external(tmp_path, location="pipe"), "not a regular file")


def test_names_a_missing_data_file(tmp_path: Path) -> None:
    _raises(ModelError, _external(tmp_path, location="gone.bin"), "'gone.bin' is missing")


@pytest.mark.parametrize(
    ("entries", "mentions"),
    [
        ({"length": "44"}, "contradicts shape"),
        ({"length": "4800000000000"}, "contradicts shape"),
        ({"offset": "20", "length": "48"}, "beyond the end"),
        ({"offset": "-16"}, "not a count"),
        ({"offset": "1e3"}, "not a count"),
        ({"offset": "9" * 30}, "not a count"),
    ],
)
def test_refuses_wrong_offsets_and_lengths(
    tmp_path: Path, entries: dict[str, str], mentions: str
) -> None:
    _weights(tmp_path / "weights.bin")
    path = _external(tmp_path, location="weights.bin", **entries)
    _raises(UnsafeModelError, path, mentions)


def test_refuses_names_that_are_no_text(tmp_path: Path) -> None:
    content = linear_model().SerializeToString().replace(b"product", b"pro\xffuct")
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    _raises(ModelError, path, "not valid text")


def test_refuses_values_produced_twice(tmp_path: Path) -> None:
    proto = linear_model()
    proto.graph.node.append(helper.make_node("Relu", ["x"], ["y"], name="again"))
    _raises(ModelError, _write(tmp_path / "m.onnx", proto), "'again' (Relu): value 'y'")


@pytest.mark.parametrize("seed", range(8))
def test_damaged_files_end_in_an_error_of_ours_or_in_a_model(tmp_path: Path, seed: int) -> None:
    intact = linear_model().SerializeToString()
    generator = np.random.default_rng(seed)
    path = tmp_path / "model.onnx"
    refused = 0
    for _ in range(40):
        content = bytearray(intact)
        for position in generator.integers(0, len(content), 2):
            content[position] = generator.integers(0, 256)
        path.write_bytes(content)
        try:
            import_onnx(path)
        except ModelError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 0
