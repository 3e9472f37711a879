"""Types at the border of a function: of tensors as Relax knows them, of sequences as ONNX."""

from __future__ import annotations

from typing import Any, TypeAlias

from onnx import TypeProto
from tvm import relax, tirx

# A tensor, or a sequence of tensors of the type that ONNX tells.
Kind: TypeAlias = relax.TensorType | TypeProto


class NotCompiledError(Exception):
    """A subgraph cannot become a function; carries the reason."""


def relax_type(kind: Kind) -> Any:
    return relax.AnyType() if isinstance(kind, TypeProto) else kind


def loose_type(kind: Kind) -> Any:
    if isinstance(kind, TypeProto):
        return relax.AnyType()
    return relax.TensorType(dtype=str(kind.dtype), ndim=kind.ndim)


def dtype_of(kind: Kind) -> str:
    """The dtype of a tensor, or what a sequence holds."""
    if isinstance(kind, TypeProto):
        return f"a sequence of {kind.sequence_type.elem_type.tensor_type.elem_type}"
    return str(kind.dtype)


def rank_of(kind: Kind) -> int | None:
    return None if isinstance(kind, TypeProto) else kind.ndim


def same_kind(first: Kind, second: Kind) -> bool:
    """Whether two types of one dtype tell the same extents."""
    if isinstance(first, TypeProto) or isinstance(second, TypeProto):
        return bool(first == second)
    if first.ndim != second.ndim or first.ndim < 0:
        return first.ndim == second.ndim
    return open_static(first) == open_static(second)


def any_elements(kind: TypeProto) -> TypeProto:
    """A type of sequences that tells no more of the elements than their dtype."""
    result = TypeProto()
    result.CopyFrom(kind)
    result.sequence_type.elem_type.tensor_type.ClearField("shape")
    return result


def tensor_kind(kind: Kind) -> relax.TensorType:
    if isinstance(kind, TypeProto):
        raise NotCompiledError("rows of a scan output are sequences")
    return kind


def tensor_type_of(value: Any) -> relax.TensorType:
    if not isinstance(value, relax.Expr) or not isinstance(value.ty, relax.TensorType):
        raise NotCompiledError("a value is no tensor")
    return value.ty


def open_static(kind: relax.TensorType) -> list[int | None]:
    """Known extents of a tensor, None for the others."""
    if not isinstance(kind.shape, relax.ShapeExpr):
        return [None] * kind.ndim
    return [int(e.value) if isinstance(e, tirx.IntImm) else None for e in kind.shape.values]


def row_description(kind: relax.TensorType, declared: TypeProto) -> dict[str, Any]:
    """Dtype and shape of what a turn gives: without a turn, nothing else tells them.

    Then ONNX Runtime believes what is declared, and takes extents that are not known for zero.
    """
    if kind.ndim < 0:
        return {"shape": None, "dtype": str(kind.dtype)}
    shape = [size or 0 for size in open_static(kind)]
    dims = declared.tensor_type.shape.dim
    if len(dims) == len(shape):
        shape = [dim.dim_value or size for dim, size in zip(dims, shape, strict=True)]
    return {"shape": shape, "dtype": str(kind.dtype)}


def row_type(kind: relax.TensorType, axis: int = 0) -> relax.TensorType:
    """The type of a stack of tensors along `axis`."""
    if not isinstance(kind.shape, relax.ShapeExpr):
        ndim = kind.ndim + 1 if kind.ndim >= 0 else -1
        return relax.TensorType(dtype=str(kind.dtype), ndim=ndim)
    extents = list(kind.shape.values)
    extents.insert(axis % (len(extents) + 1), tirx.Var("turns", "int64"))
    return relax.TensorType(extents, str(kind.dtype))


def slice_type(kind: relax.TensorType, axis: int) -> relax.TensorType:
    """The type of one slice along `axis`."""
    if not isinstance(kind.shape, relax.ShapeExpr):
        raise NotCompiledError("a scan input of unknown shape")
    extents = list(kind.shape.values)
    del extents[axis]
    return relax.TensorType(extents, str(kind.dtype))


def counter_shape(kind: TypeProto.Tensor) -> list[int]:
    """The declared shape of the counter or the condition: a scalar or a vector of one."""
    return [1] * min(len(kind.shape.dim), 1)
