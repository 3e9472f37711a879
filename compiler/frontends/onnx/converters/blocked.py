"""Weights of few bits with a scale for each block: matrix products and tables of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters.constants import (
    as_numpy,
    dtype_of,
    reshape,
    slice_axis,
    static_shape,
)
from tinsmith.targets.compressed_weights import (
    EVEN_LEVELS,
    CompressedWeights,
    Grouping,
    decompress_call,
)


class MatMulNBits(OnnxOpConverter):
    """`A @ dequantize(B)`, where `B` holds codes of 4 or 8 bits, column by column, in blocks.

    Kernels read the codes, and scales in float16 where that holds them exactly.
    """

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        data, packed, scale, zero_point, order, bias = (inputs[i] for i in range(6))
        rows, columns = attr["K"], attr["N"]
        bits, block = attr.get("bits", 4), attr["block_size"]
        if bits not in (4, 8):
            raise ValueError(f"weights of {bits} bits are not supported; 4 and 8 are")
        if block < 16 or block & (block - 1):
            raise ValueError(f"the block size {block} is no power of two of at least 16")
        if order is not None:
            raise ValueError("weights in another order than that of the input are not supported")
        shape = static_shape(data)
        if not shape or shape[-1] != rows:
            raise ValueError(f"the input has the shape {list(shape)}, but K is {rows}")
        blocks = -(-rows // block)
        codes = _unpacked(packed, "the weight", bits, columns * blocks, block)
        codes = codes.reshape(columns, blocks * block)[:, :rows].T
        scales = _numbers(scale, "the scale", columns * blocks).reshape(columns, blocks).T
        if not (np.isfinite(scales).all()):
            raise ValueError("a scale is not finite")
        offset = _zero_points(zero_point, bits, columns, blocks)
        right = bb.emit(decompress_call(_compressed(codes, scales, offset, bits, block)))
        dtype = dtype_of(data)
        if dtype != "float32":
            data = bb.emit(relax.op.astype(data, "float32"))
        if len(shape) == 1:
            data = reshape(bb, data, (1, rows))
        result = bb.emit(relax.op.matmul(data, right))
        if len(shape) == 1:
            result = reshape(bb, result, (columns,))
        if bias is not None:
            result = bb.emit(relax.op.add(result, relax.op.astype(bias, "float32")))
        return relax.op.astype(result, dtype)


class GatherBlockQuantized(OnnxOpConverter):
    """Rows of a table of codes in blocks, as an embedding has them, in the dtype of the scales.

    Codes of 4 bits lie in pairs in bytes, low bits first, or are of a dtype of 4 bits. Only the
    rows that are asked for become floats.
    """

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        table, indices, scale, zero_point = (inputs[i] for i in range(4))
        narrow = attr["tvm_custom"]["dtypes"][0]
        bits = 4 if narrow else attr.get("bits", 4)
        rank, block = len(static_shape(table)), attr.get("block_size", 128)
        last = attr.get("quantize_axis", 1) % rank == rank - 1
        if attr.get("gather_axis", 0) % rank or not last or bits not in (4, 8):
            raise ValueError(
                "only rows are gathered, of codes of 4 or 8 bits in blocks of the last axis"
            )
        packed = bits == 4 and not narrow

        def rows(x: relax.Expr, pairs: bool, width: int) -> relax.Expr:
            found = bb.emit(relax.op.take(x, indices, axis=0, mode="clip"))
            if not pairs:
                return bb.emit(relax.op.astype(found, "int32"))
            shape = static_shape(found)
            wide = bb.emit(relax.op.astype(found, "int32"))
            low = relax.op.bitwise_and(wide, relax.const(15, "int32"))
            high = relax.op.right_shift(wide, relax.const(4, "int32"))
            both = bb.emit(relax.op.stack([bb.emit(low), bb.emit(high)], axis=-1))
            both = bb.emit(relax.op.reshape(both, (*shape[:-1], 2 * shape[-1])))
            return slice_axis(bb, both, len(shape) - 1, 0, width)

        width = static_shape(table)[-1] * (2 if packed else 1)
        blocks = static_shape(scale)[-1]
        codes = rows(table, packed, width)

        def spread(x: relax.Expr) -> relax.Expr:
            axis = len(static_shape(x)) - 1
            return slice_axis(bb, bb.emit(relax.op.repeat(x, block, axis)), axis, 0, width)

        if zero_point is not None:
            offset = spread(rows(zero_point, packed, blocks))
        else:
            offset = relax.const(0 if narrow else 2 ** (bits - 1), "int32")
        distance = bb.emit(relax.op.subtract(codes, offset))
        scales = spread(bb.emit(relax.op.take(scale, indices, axis=0, mode="clip")))
        return relax.op.multiply(relax.op.astype(distance, dtype_of(scale)), scales)


def _compressed(
    codes: np.ndarray, scales: np.ndarray, offset: np.ndarray, bits: int, block: int
) -> CompressedWeights:
    """What kernels read."""
    middle = 2 ** (bits - 1)
    # A block larger than the matrix is the matrix.
    grouping = Grouping(1, codes.shape[0], 1, min(block, codes.shape[0] + codes.shape[0] % 2))
    stored = codes if bits == 4 else (codes.astype(np.int16) - middle).astype(np.int8)
    if (offset != middle).any():
        offsets = np.ascontiguousarray(offset - middle, np.float32)
        return CompressedWeights(stored, scales, None, grouping, offsets)
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if not np.array_equal(half.astype(np.float32), scales):
        return CompressedWeights(stored, scales, None, grouping)
    return CompressedWeights(stored, half, EVEN_LEVELS if bits == 4 else None, grouping)


def _unpacked(expr: relax.Expr | None, what: str, bits: int, rows: int, columns: int) -> np.ndarray:
    """uint8 codes `[rows, columns]` of a constant whose bytes hold one or two, low bits first."""
    array = as_numpy(expr)
    if array is None or array.dtype != np.uint8:
        raise ValueError(f"{what} must be a constant of uint8")
    width = -(-columns * bits // 8)
    if array.size != rows * width:
        raise ValueError(f"{what} has {array.size} bytes instead of {rows * width}")
    array = array.reshape(rows, width)
    if bits == 8:
        return array
    return np.stack([array & 15, array >> 4], -1).reshape(rows, 2 * width)[:, :columns]


def _numbers(expr: relax.Expr | None, what: str, count: int) -> np.ndarray:
    array = as_numpy(expr)
    if array is None or array.dtype.kind != "f":
        raise ValueError(f"{what} must be a constant of floats")
    if array.size != count:
        raise ValueError(f"{what} has {array.size} elements instead of {count}")
    return array.astype(np.float32)


def _zero_points(expr: relax.Expr | None, bits: int, columns: int, blocks: int) -> np.ndarray:
    """Zero points `[blocks, columns]`: given as packed codes, as floats, or the middle code."""
    if expr is None:
        return np.full((blocks, columns), 2 ** (bits - 1), np.float32)
    if dtype_of(expr) == "uint8":
        found = _unpacked(expr, "the zero point", bits, columns, blocks)
        return found.T.astype(np.float32)
    return _numbers(expr, "the zero point", columns * blocks).reshape(columns, blocks).T
