"""Giving every input of an ONNX model a fixed shape, and folding what follows from it.

Shape arithmetic (Shape, Gather, Concat, Reshape ...) must have disappeared before
the graph is converted: Relax needs the new shape of a Reshape as a constant.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir
from onnx import ModelProto, TensorProto, TensorShapeProto, ValueInfoProto

from tinsmith.compiler.errors import ConfigError, ModelError, ShapeError
from tinsmith.compiler.frontends.forked import ToolError
from tinsmith.compiler.frontends.onnx.converters.constants import COMPUTABLE_DTYPES
from tinsmith.compiler.frontends.onnx.evaluate import LOOPING
from tinsmith.compiler.frontends.onnx.guard import in_child
from tinsmith.compiler.frontends.onnx.limits import check_inputs
from tinsmith.compiler.frontends.onnx.soundness import unsoundness
from tinsmith.compiler.frontends.onnx.sparse import densify

# Names that exporters give to a batch dimension. Anything else in first place counts as one
# too, unless it is named like something that has a length of its own.
_BATCH_NAME = re.compile(r"batch|^n$|^b$|^bs$", re.IGNORECASE)
_LENGTH_NAME = re.compile(r"seq|len|time|frame|token|height|width|sample|step", re.IGNORECASE)

# Larger results are left to the graph compiler: folding them here would only inflate the file.
_FOLD_INPUT_LIMIT = 4096
_FOLD_OUTPUT_LIMIT = 1 << 20


@dataclass(frozen=True)
class BoundInput:
    """One input as the compiled function takes it. `dtype` is numpy's name for it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def bind_inputs(
    model: ModelProto,
    shapes: Mapping[str, Sequence[int]],
    constants: Mapping[str, np.ndarray],
    source: str,
    batch: int | None = None,
) -> tuple[ModelProto, list[BoundInput], list[str]]:
    """A copy of `model` whose inputs all have fixed shapes; the inputs; notes on what was chosen.

    Batch dimensions that are left open get the size `batch`, or 1. `shapes` may differ from sizes
    that the file declares: what it says of other tensors is forgotten. `constants` turns inputs
    into constants. Raises `ShapeError` when a shape has another rank than the input or is not
    known, `ConfigError` for a name that is no input.
    """
    bound = ModelProto()
    bound.CopyFrom(model)
    densify(bound.graph, source)
    # Below format version 4 every initializer had to be listed as an input; dropping those
    # entries makes the model one of version 4.
    bound.ir_version = max(bound.ir_version, 4)
    initializers = {tensor.name for tensor in bound.graph.initializer}
    inputs = [value for value in bound.graph.input if value.name not in initializers]
    names = [value.name for value in inputs]
    for given in (*shapes, *constants):
        if given not in names:
            error = ShapeError if given in shapes else ConfigError
            raise error(f"{source}: the model has no input {given!r}; it has {', '.join(names)}")
    notes: list[str] = []
    _bind_constants(bound, inputs, constants, source, notes)
    inputs = [value for value in inputs if value.name not in constants]
    symbols = _given_symbols(inputs, shapes, source)
    result = [_bind_input(value, shapes, symbols, source, notes, batch) for value in inputs]
    check_inputs({value.name: value.shape for value in result}, frozenset(shapes), source)
    del bound.graph.input[:]
    for value, fixed in zip(inputs, result, strict=True):
        entry = bound.graph.input.add()
        entry.CopyFrom(value)
        shape = entry.type.tensor_type.shape
        shape.Clear()
        for size in fixed.shape:
            shape.dim.add().dim_value = size
    # What the file says about intermediate shapes may contradict the shapes just bound.
    del bound.graph.value_info[:]
    for output in bound.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    return bound, result, notes


def fold(model: ModelProto) -> tuple[ModelProto, list[str]]:
    """`model` with shape arithmetic and small constants folded, and notes about it.

    The graph optimizer of onnxscript does the work. Where it cannot digest a model, or makes an
    unsound one of it, the original is returned with a note: the importer folds shape arithmetic
    itself as it goes.
    """
    import onnxscript.optimizer  # noqa: F401  (once here, not in every child)

    try:
        folded = in_child(_folded, model)
    except ToolError as error:
        return model, [f"onnxscript could not fold the graph ({error})"]
    reason = unsoundness(folded, model)
    if reason:
        return model, [f"the graph is used unfolded: onnxscript's folding is unsound ({reason})"]
    return folded, []


def _folded(model: ModelProto) -> ModelProto:
    import onnxscript.optimizer
    import onnxscript.rewriter

    # FoldBatchNorm does it in float64, and leaves weights alone that are stored in 16 bits. This
    # is a child process: nobody else's rules change.
    rules = getattr(onnxscript.rewriter, "_DEFAULT_REWRITE_RULES", ())
    onnxscript.rewriter._DEFAULT_REWRITE_RULES = tuple(
        rule for rule in rules if not str(rule.name).startswith("FuseBatchNorm")
    )
    # What the optimizer has to say about single nodes is of no use to the user.
    for name in ("onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    graph = onnx_ir.from_proto(model)
    onnxscript.optimizer.optimize_ir(
        graph,
        input_size_limit=_FOLD_INPUT_LIMIT,
        output_size_limit=_FOLD_OUTPUT_LIMIT,
        # It asks for the size of a result when it has computed it.
        should_fold=lambda node: False if node.op_type in LOOPING else None,
    )
    return onnx_ir.to_proto(graph)


def resized(model: ModelProto, shapes: Mapping[str, Sequence[int]]) -> str:
    """Which inputs are given other sizes than the file declares, in words; empty for none."""
    return " and ".join(
        f"{value.name!r}, declared {_declared(value)}"
        for value in model.graph.input
        if any(
            0 < dim.dim_value != size
            for dim, size in zip(
                value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False
            )
        )
    )


def _bind_constants(
    model: ModelProto,
    inputs: Sequence[ValueInfoProto],
    constants: Mapping[str, np.ndarray],
    source: str,
    notes: list[str],
) -> None:
    for value in inputs:
        if value.name not in constants:
            continue
        dtype = _input_dtype(value, source)
        given = np.asarray(constants[value.name])
        with np.errstate(all="ignore"):
            array = given.astype(dtype)
        same = (array == given) | ((array != array) & (given != given))  # NaN stays NaN
        if given.dtype == object or not same.all():
            raise ConfigError(
                f"{source}: the constant for input {value.name!r} does not fit its dtype {dtype}"
            )
        tensor_type = value.type.tensor_type
        if tensor_type.HasField("shape"):
            dims = [dim.dim_value for dim in tensor_type.shape.dim]
            if len(dims) != array.ndim or any(
                dim > 0 and dim != size for dim, size in zip(dims, array.shape, strict=True)
            ):
                raise ShapeError(
                    f"{source}: the constant for input {value.name!r} has shape "
                    f"{list(array.shape)}, the model declares {_declared(value)}"
                )
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        notes.append(f"input {value.name!r} bound to a constant")


def _given_symbols(
    inputs: Sequence[ValueInfoProto], shapes: Mapping[str, Sequence[int]], source: str
) -> dict[str, int]:
    """Sizes of the named dimensions, as far as the shapes given by the user tell."""
    symbols: dict[str, int] = {}
    origin: dict[str, str] = {}
    for value in inputs:
        if value.name not in shapes:
            continue
        shape = tuple(shapes[value.name])
        if any(not isinstance(size, int | np.integer) or size < 1 for size in shape):
            raise ShapeError(
                f"{source}: the shape {list(shape)} given for input {value.name!r} "
                "must consist of positive integers"
            )
        tensor_type = value.type.tensor_type
        if not tensor_type.HasField("shape"):
            continue
        dims = tensor_type.shape.dim
        if len(dims) != len(shape):
            raise ShapeError(
                f"{source}: input {value.name!r} has {len(dims)} dimensions {_declared(value)}, "
                f"but --shape gives {len(shape)}: {list(shape)}"
            )
        for dim, size in zip(dims, shape, strict=True):
            symbol = dimension_symbol(dim)
            if not symbol:
                continue
            if symbols.setdefault(symbol, size) != size:
                raise ShapeError(
                    f"{source}: dimension {symbol!r} would be {symbols[symbol]} in "
                    f"input {origin[symbol]!r} and {size} in input {value.name!r}"
                )
            origin.setdefault(symbol, value.name)
    return symbols


def _bind_input(
    value: ValueInfoProto,
    shapes: Mapping[str, Sequence[int]],
    symbols: dict[str, int],
    source: str,
    notes: list[str],
    batch: int | None = None,
) -> BoundInput:
    dtype = _input_dtype(value, source)
    if value.name in shapes:
        return BoundInput(value.name, tuple(int(size) for size in shapes[value.name]), dtype)
    if not value.type.tensor_type.HasField("shape"):
        raise ShapeError(
            f"{source}: the shape of input {value.name!r} is not known; "
            f"give it with --shape {value.name}=..."
        )
    shape: list[int] = []
    unknown: list[str] = []
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        symbol = dimension_symbol(dim)
        if dim.dim_value > 0:
            shape.append(dim.dim_value)
        elif symbol in symbols:
            shape.append(symbols[symbol])
        elif dim.HasField("dim_value") and dim.dim_value == 0:
            shape.append(0)  # an empty tensor, which a few operators accept
        elif is_batch(axis, symbol):
            shape.append(batch or 1)
            if symbol:
                symbols[symbol] = batch or 1
            which = f"batch dimension {symbol!r}" if symbol else "unnamed first dimension"
            if batch is None:
                notes.append(f"{which} of input {value.name!r} bound to 1")
        else:
            unknown.append(repr(symbol) if symbol else f"number {axis}")
    if unknown:
        example = ",".join(
            str(dim.dim_value if dim.dim_value > 0 else "?")
            for dim in value.type.tensor_type.shape.dim
        )
        raise ShapeError(
            f"{source}: input {value.name!r} has open dimensions ({', '.join(unknown)}); "
            f"give its shape with --shape {value.name}={example}"
        )
    return BoundInput(value.name, tuple(shape), dtype)


def dimension_symbol(dim: TensorShapeProto.Dimension) -> str:
    """The name of `dim`; exporters that know none write a question mark or -1."""
    return "" if dim.dim_param in ("?", "-1") else dim.dim_param


def is_batch(axis: int, name: str) -> bool:
    if _BATCH_NAME.search(name):
        return True
    return axis == 0 and not _LENGTH_NAME.search(name)


def _declared(value: ValueInfoProto) -> str:
    dims = value.type.tensor_type.shape.dim
    return "[" + ", ".join(str(dim.dim_param or dim.dim_value or "?") for dim in dims) + "]"


def _input_dtype(value: ValueInfoProto, source: str) -> str:
    if not value.type.HasField("tensor_type"):
        kind = value.type.WhichOneof("value") or "untyped value"
        raise ModelError(
            f"{source}: input {value.name!r} is a {kind.replace('_type', '')}, not a tensor"
        )
    element = value.type.tensor_type.elem_type
    known = element in TensorProto.DataType.values()
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(element)) if known and element else "undefined"
    if dtype not in COMPUTABLE_DTYPES:
        name = TensorProto.DataType.Name(element) if known else str(element)
        raise ModelError(
            f"{source}: input {value.name!r} has the dtype {name}, which cannot be computed with"
        )
    return dtype
