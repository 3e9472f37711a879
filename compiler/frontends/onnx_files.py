"""Reading ONNX files that are not trusted.

A model file may be anything: truncated, not ONNX at all, or made to read files
that its author has no business with. Nothing here calls `onnx.load`, which
follows external data on its own; tensors kept outside the file are read only
after their location, offset and length have been checked.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

from compiler.errors import ModelError, UnsafeModelError
from compiler.frontends.onnx_limits import check_axes, check_functions
from compiler.frontends.onnx_schemas import check_nodes
from compiler.frontends.onnx_wellformed import check_graphs

# The oldest file format whose operators the converters describe, and the newest opset of the
# installed onnx package: a later one may have changed the meaning of an operator.
_OLDEST_IR_VERSION = 3
_NEWEST_OPSET = onnx.defs.onnx_opset_version()
_OLDEST_OPSET = 1
_PROTOBUF_LIMIT = 2**31 - 1
_STANDARD_DOMAINS = ("", "ai.onnx")

_TYPED_FIELDS = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.STRING: "string_data",
}


def read_model(path: str | Path) -> ModelProto:
    """The model in `path` with its external tensors loaded.

    Raises `ModelError` for a file that is missing, unreadable or not a well-formed ONNX model,
    and `UnsafeModelError` if it refers to data outside its folder or lies about sizes.
    """
    path = Path(path)
    model = ModelProto()
    try:
        model.ParseFromString(_read_bytes(path))
    except DecodeError as error:
        raise ModelError(
            f"{path}: not an ONNX file, or a truncated one (protobuf cannot parse it)"
        ) from error
    check_model(model, str(path))
    for tensor in all_tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            _load_external(tensor, path)
    return model


def check_model(model: ModelProto, source: str) -> None:
    """Raise `ModelError` unless `model` is complete, coherent, and of a known format and opset."""
    if not model.HasField("graph") or not model.graph.output:
        raise ModelError(f"{source}: not an ONNX model: it has no graph with outputs")
    if model.ir_version < _OLDEST_IR_VERSION:
        raise ModelError(
            f"{source}: ONNX file format version {model.ir_version} is older than "
            f"{_OLDEST_IR_VERSION}; convert the model with a current onnx package"
        )
    opset = standard_opset(model)
    if opset is None:
        raise ModelError(f"{source}: the model names no version of the standard operator set")
    if len({e.version for e in model.opset_import if e.domain in _STANDARD_DOMAINS}) > 1:
        raise ModelError(f"{source}: the model names two versions of the standard operator set")
    if not _OLDEST_OPSET <= opset <= _NEWEST_OPSET:
        raise ModelError(
            f"{source}: operator set version {opset} is not supported (known: {_OLDEST_OPSET} "
            f"to {_NEWEST_OPSET}); convert the model with onnx.version_converter"
        )
    for tensor in all_tensors(model):
        _check_tensor(tensor, source)
    check_graphs(model, source)
    check_nodes(model, source)
    check_functions(model, source)


def standard_opset(model: ModelProto) -> int | None:
    """The version of the standard operator set that `model` imports, if any."""
    versions = [entry.version for entry in model.opset_import if entry.domain in _STANDARD_DOMAINS]
    return versions[0] if versions else None


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor stored in the model: initializers and attributes, subgraphs included."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            for attribute in node.attribute:
                yield from _attribute_tensors(attribute)


def tensor_bytes(tensor: TensorProto) -> int:
    """Number of bytes that the elements of `tensor` take when packed, by shape and dtype."""
    elements = 1
    for dim in tensor.dims:
        elements *= dim
    bits = _element_bits(tensor.data_type)
    return (elements * bits + 7) // 8


def _read_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelError(f"{path}: is a directory, not an ONNX file")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path}: is not a regular file")
        if status.st_size == 0:
            raise ModelError(f"{path}: the file is empty")
        if status.st_size > _PROTOBUF_LIMIT:
            raise ModelError(
                f"{path}: larger than the 2 GiB that an ONNX file can hold; "
                "store the weights as external data"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # an embedded null byte in the path
        raise ModelError(f"{str(path)!r}: not a usable path: {error}") from error


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    if attribute.HasField("sparse_tensor"):
        yield attribute.sparse_tensor.values
        yield attribute.sparse_tensor.indices
    if attribute.HasField("g"):
        yield from _graph_tensors(attribute.g)
    for graph in attribute.graphs:
        yield from _graph_tensors(graph)


def _element_bits(data_type: int) -> int:
    four_bits = {TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1}
    two_bits = {getattr(TensorProto, name, -1) for name in ("INT2", "UINT2")}
    if data_type in four_bits:
        return 4
    if data_type in two_bits:
        return 2
    return 8 * onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize


def _check_tensor(tensor: TensorProto, source: str) -> None:
    """Raise unless the data stored for `tensor` is what its shape and dtype announce."""
    name = tensor.name or "(unnamed)"
    check_axes(len(tensor.dims), f"{source}: tensor {name!r}")
    if any(dim < 0 for dim in tensor.dims):
        raise UnsafeModelError(f"{source}: tensor {name!r} has a negative dimension")
    if tensor.data_type not in TensorProto.DataType.values() or not tensor.data_type:
        raise ModelError(f"{source}: tensor {name!r} has the unknown dtype {tensor.data_type}")
    if tensor.data_location == TensorProto.EXTERNAL:
        if tensor.data_type == TensorProto.STRING:
            raise ModelError(f"{source}: string tensor {name!r} cannot be external data")
        return
    if tensor.HasField("raw_data"):
        if tensor.data_type == TensorProto.STRING:
            raise ModelError(f"{source}: string tensor {name!r} cannot be raw data")
        if len(tensor.raw_data) != tensor_bytes(tensor):
            raise UnsafeModelError(
                f"{source}: tensor {name!r} of shape {list(tensor.dims)} needs "
                f"{tensor_bytes(tensor)} bytes but carries {len(tensor.raw_data)}"
            )
        return
    elements = 1
    for dim in tensor.dims:
        elements *= dim
    bits = _element_bits(tensor.data_type)
    if bits < 8:
        elements = (elements * bits + 7) // 8
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        elements *= 2
    field = _TYPED_FIELDS.get(tensor.data_type, "int32_data")
    stored = len(getattr(tensor, field))
    if stored != elements:
        raise UnsafeModelError(
            f"{source}: tensor {name!r} of shape {list(tensor.dims)} needs {elements} values "
            f"but carries {stored}"
        )


def _load_external(tensor: TensorProto, model_path: Path) -> None:
    """Replace the reference to external data in `tensor` by the data."""
    where = f"{model_path}: external data of tensor {tensor.name!r}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    data_path = _safe_location(entries.get("location", ""), model_path, where)
    offset = _count(entries, "offset", 0, where)
    expected = tensor_bytes(tensor)
    length = _count(entries, "length", expected, where)
    if length != expected:
        raise UnsafeModelError(
            f"{where}: length {length} contradicts shape {list(tensor.dims)}, "
            f"which needs {expected} bytes"
        )
    try:
        with open(data_path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnsafeModelError(f"{where}: {data_path.name!r} is not a regular file")
            if offset + length > status.st_size:
                raise UnsafeModelError(
                    f"{where}: bytes {offset} to {offset + length} lie beyond the end of "
                    f"{data_path.name!r} ({status.st_size} bytes)"
                )
            file.seek(offset)
            data = file.read(length)
    except OSError as error:
        raise ModelError(f"{where}: {data_path.name!r}: {error.strerror or error}") from error
    if len(data) != length:
        raise ModelError(f"{where}: {data_path.name!r} ended early")
    tensor.raw_data = data
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _safe_location(location: str, model_path: Path, where: str) -> Path:
    """The file that `location` names, which must lie inside the folder of the model."""
    # A backslash separates folders for the tools of another system: no file needs one.
    parts = location.replace("\\", "/").split("/")
    if not location or "\0" in location:
        raise UnsafeModelError(f"{where}: the location {location!r} is not a file name")
    if location.startswith(("/", "\\")) or ":" in parts[0]:
        raise UnsafeModelError(f"{where}: the location {location!r} is an absolute path")
    if ".." in parts:
        raise UnsafeModelError(f"{where}: the location {location!r} leaves the model's folder")
    folder = Path(os.path.realpath(model_path)).parent
    resolved = Path(os.path.realpath(folder / location))
    if not resolved.is_relative_to(folder):
        raise UnsafeModelError(
            f"{where}: {location!r} is a link to a file outside the model's folder"
        )
    if not resolved.exists():
        raise ModelError(f"{where}: the file {location!r} is missing beside the model")
    if not resolved.is_file():
        raise UnsafeModelError(f"{where}: {location!r} is not a regular file")
    return resolved


def _count(entries: dict[str, str], key: str, default: int, where: str) -> int:
    text = entries.get(key)
    if text is None or text == "":
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise UnsafeModelError(f"{where}: {key} {text[:40]!r} is not a count of bytes")
    return int(text)


def serialized(model: ModelProto, source: str) -> bytes:
    """The bytes of `model`; `ModelError` if it is too large for one protobuf message."""
    try:
        return model.SerializeToString()
    except (EncodeError, ValueError) as error:
        raise ModelError(f"{source}: larger than the 2 GiB that one message can hold") from error
