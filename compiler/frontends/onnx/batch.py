"""Which dimensions of an ONNX model's inputs are a batch whose size is open."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from onnx import ModelProto, ValueInfoProto

from tinsmith.compiler.dimensions.open_batch import OpenAxes
from tinsmith.compiler.dimensions.ranges import Range, Size, highest
from tinsmith.compiler.errors import ShapeError
from tinsmith.compiler.frontends.onnx.shapes import dimension_symbol, is_batch

# Other symbols of a file, such as `2*n`, would read as an expression in a shape.
_NAME = re.compile(r"[A-Za-z_][\w.]{0,99}", re.ASCII)


def open_axes(
    model: ModelProto,
    shapes: Mapping[str, Sequence[Size]],
    batch: Size | None,
    source: str,
) -> OpenAxes | None:
    """The dimension that `shapes` or `batch` leave open, with all inputs that have it; or None.

    Inputs without a shape have it where the file gives their dimension the same name, and with
    `batch` where the file leaves their batch open. Raises ShapeError for two different ranges.
    """
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    found: dict[str, int] = {}
    ranges: dict[Range, str] = {}
    symbols: list[str] = []

    def add(name: str, axis: int, size: Range, symbol: str) -> None:
        if name in found:
            raise ShapeError(
                f"{source}: input {name!r} has two open dimensions, {found[name]} and {axis}; "
                "only the batch may be a range, give the others one size"
            )
        found[name] = axis
        ranges.setdefault(size, name)
        if symbol and symbol not in symbols:
            symbols.append(symbol)

    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        for axis, size in enumerate(shapes.get(value.name, ())):
            if not isinstance(size, Range):
                continue
            declared = dims[axis] if axis < len(dims) else None
            add(value.name, axis, size, dimension_symbol(declared) if declared is not None else "")
    asked = batch if isinstance(batch, Range) else next(iter(ranges), None)
    for value in inputs:
        if value.name in shapes or asked is None:
            continue
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            symbol = dimension_symbol(dim)
            is_open = not dim.HasField("dim_value") or dim.dim_value < 0
            same = symbol in symbols
            if is_open and (same or (isinstance(batch, Range) and is_batch(axis, symbol))):
                add(value.name, axis, asked, symbol)
    if len(ranges) > 1:
        (one, first), (other, second) = list(ranges.items())[:2]
        raise ShapeError(
            f"{source}: the dimension is {one} in input {first!r} and {other} in input "
            f"{second!r}; all inputs share one range"
        )
    if not ranges:
        if isinstance(batch, Range):
            raise ShapeError(
                f"{source}: --batch {batch}: no input has an open batch dimension; "
                f"give the inputs it concerns with --shape, as {_example(inputs, batch)}"
            )
        return None
    size = next(iter(ranges))
    name = next(filter(_NAME.fullmatch, symbols), "batch")
    return OpenAxes(name, size.low, size.high, found)


def _example(inputs: Sequence[ValueInfoProto], batch: Range) -> str:
    value = inputs[0] if inputs else ValueInfoProto(name="x")
    rest = [dim.dim_value or "?" for dim in value.type.tensor_type.shape.dim][1:]
    return f"{value.name}={','.join(map(str, [batch, *rest]))}"


def at_bound(shapes: Mapping[str, Sequence[Size]]) -> dict[str, tuple[int, ...]]:
    """The shapes with the largest size of each range."""
    return {name: tuple(map(highest, shape)) for name, shape in shapes.items()}


def reference_at(model: ModelProto, axes: OpenAxes, size: int) -> ModelProto:
    """A model that was bound at `axes.high`, bound to another size."""
    other = ModelProto()
    other.CopyFrom(model)
    for value in other.graph.input:
        if value.name in axes.axes:
            dims = value.type.tensor_type.shape.dim
            dims[axes.axes[value.name]].dim_value = size
    return other
