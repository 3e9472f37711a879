"""Reading ONNX files that are not trusted.

A model file may be anything: truncated, not ONNX at all, or made to read files
that its author has no business with. Nothing here calls `onnx.load`, which
follows external data on its own; tensors kept outside the file are read only
after their location, offset and length have been checked.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto, TensorProto

from tinsmith.compiler.errors import ModelError, UnsafeModelError
from tinsmith.compiler.frontends.foreign_files import told_of_foreign
from tinsmith.compiler.frontends.onnx.external import load_external
from tinsmith.compiler.frontends.onnx.limits import check_axes, check_functions
from tinsmith.compiler.frontends.onnx.schemas import check_nodes
from tinsmith.compiler.frontends.onnx.tensors import all_tensors, element_bits, tensor_bytes
from tinsmith.compiler.frontends.onnx.wellformed import check_graphs
from tinsmith.compiler.module.regular_file import open_regular

# The oldest file format whose operators the converters describe, and the newest opset of the
# installed onnx package: a later one may have changed the meaning of an operator.
_OLDEST_IR_VERSION = 3
_NEWEST_OPSET = onnx.defs.onnx_opset_version()
_OLDEST_OPSET = 1
# A model of trees or tables may use no operator of the standard, and name no version of it.
_OPSET_OF_TABLES = 9
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


def read_model(path: str | os.PathLike[str]) -> ModelProto:
    """The model in `path` with its external tensors loaded.

    Raises `ModelError` for a file that is missing, unreadable or not a well-formed ONNX model,
    and `UnsafeModelError` if it refers to data outside its folder or lies about sizes.
    """
    path = Path(path)
    model = ModelProto()
    try:
        model.ParseFromString(_read_bytes(path))
    except DecodeError as error:
        told = told_of_foreign(path)
        raise ModelError(
            f"{path}: {told}"
            if told
            else f"{path}: not an ONNX file, or a truncated one (protobuf cannot parse it)"
        ) from error
    told = told_of_foreign(path)
    if told and not model.HasField("graph"):
        raise ModelError(f"{path}: {told}")
    check_model(model, str(path))
    load_external(model, path)
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
    if opset is None and any(entry.domain == "ai.onnx.ml" for entry in model.opset_import):
        opset = _OPSET_OF_TABLES
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
        with open(open_regular(path), "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # an embedded null byte in the path
        raise ModelError(f"{str(path)!r}: not a usable path: {error}") from error


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
    bits = element_bits(tensor.data_type)
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


def serialized(model: ModelProto, source: str) -> bytes:
    """The bytes of `model`; `ModelError` if it is too large for one protobuf message."""
    try:
        return model.SerializeToString()
    except (EncodeError, ValueError) as error:
        raise ModelError(f"{source}: larger than the 2 GiB that one message can hold") from error
