"""Bounds of the numbers that attributes hold.

Kernels, strides and axes are small numbers, and the arithmetic on shapes in C++ does not expect
others: a stride of zero divides by it, a padding of 2^62 overflows.
"""

from __future__ import annotations

from onnx import AttributeProto, TensorProto

from compiler.errors import ModelError

# No tensor has more axes than this; numpy's own limit is 64.
MOST_AXES = 16
_LARGEST = 2**31 - 1
_LARGEST_EXTENT = 1 << 20

# At least one, and no larger than an extent can be.
_EXTENTS = frozenset(
    {
        "blocksize", "dilations", "group", "hidden_size", "kernel_shape", "kv_num_heads",
        "num_groups", "num_outputs", "num_scan_inputs", "output_height", "output_width",
        "pooled_shape", "q_num_heads", "size", "strides",
    }
)  # fmt: skip
_AXES = frozenset(
    {
        "axes", "axis", "batch_axis", "batch_dims", "perm", "scan_input_axes",
        "scan_output_axes", "seq_axis", "time_axis",
    }
)  # fmt: skip
_PADDINGS = frozenset({"border", "output_padding", "output_shape", "pads", "paddings"})
_DTYPES = frozenset({"dtype", "output_datatype", "output_dtype", "softmax_precision", "to"})
# Values that become a tensor, or positions that mean "to the end".
_FREE = frozenset(
    {"end", "ends", "ignore_index", "pool_int64s", "seed", "start", "starts", "value_int",
     "value_ints"}
)  # fmt: skip


def check_value(operator: str, attribute: AttributeProto, where: str) -> None:
    """Raise ModelError for a number of a standard operator that is out of its bounds."""
    if attribute.type == AttributeProto.INT:
        values = (attribute.i,)
    elif attribute.type == AttributeProto.INTS:
        values = tuple(attribute.ints)
    else:
        return
    name = attribute.name
    if name in _FREE or attribute.ref_attr_name:
        return
    if name in _DTYPES:
        # Zero says "as the input" where an operator allows it.
        if values[0] not in TensorProto.DataType.values():
            raise ModelError(f"{where}: attribute {name!r} names the unknown dtype {values[0]}")
        return
    low, high = -_LARGEST - 1, _LARGEST
    if name in _EXTENTS and (operator, name) != ("SplitToSequence", "size"):
        low, high = 1, _LARGEST_EXTENT
    elif name in _AXES:
        low, high = -MOST_AXES, MOST_AXES
    elif name in _PADDINGS:
        low, high = -_LARGEST_EXTENT, _LARGEST_EXTENT
    for value in values:
        if not low <= value <= high:
            raise ModelError(
                f"{where}: attribute {name!r} is {value}; it must lie in {low} to {high}"
            )
    if name in _EXTENTS | _AXES and len(values) > MOST_AXES:
        raise ModelError(f"{where}: attribute {name!r} has {len(values)} numbers, too many axes")
