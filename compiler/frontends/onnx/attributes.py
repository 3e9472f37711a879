"""Bounds of the numbers that attributes hold, and the words that they may be.

Kernels, strides and axes are small numbers, and the arithmetic on shapes in C++ does not expect
others: a stride of zero divides by it, a padding of 2^62 overflows. What names a mode is one of
few words; converters pass it on, and a pass would fail on another much later.
"""

from __future__ import annotations

import re

from onnx import AttributeProto, TensorProto

from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.plain_text import plain_line

# No tensor has more axes than this; numpy's own limit is 64.
MOST_AXES = 16
_LARGEST = 2**31 - 1
_LARGEST_EXTENT = 1 << 20
_LONGEST_WORD = 40
# An operand of an equation of Einsum.
_TERM = re.compile(r"[A-Za-z]*(\.\.\.)?[A-Za-z]*")
# Of a bin of RoiAlign, along each axis; they are summed one by one.
_MOST_SAMPLES = 64

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

_SCATTERED = frozenset({"none", "add", "mul", "max", "min"})
_LOSSES = frozenset({"none", "mean", "sum"})
_ROUNDINGS = frozenset({"up", "down", "nearest"})
_CHANNEL_ORDERS = frozenset({"DCR", "CRD"})
_RECURRENT = frozenset({"forward", "reverse", "bidirectional"})
_RESIZED = frozenset({"nearest", "linear", "bilinear", "cubic"})
# By the name of the attribute, or of the operator and the attribute.
_WORDS: dict[str, frozenset[str]] = {
    "auto_pad": frozenset({"NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"}),
    "keep_aspect_ratio_policy": frozenset({"stretch", "not_larger", "not_smaller"}),
    "nearest_mode": frozenset({"round_prefer_floor", "round_prefer_ceil", "floor", "ceil"}),
    "padding_mode": frozenset({"zeros", "border", "reflection"}),
    "BitShift.direction": frozenset({"LEFT", "RIGHT"}),
    "Cast.round_mode": _ROUNDINGS,
    "CastLike.round_mode": _ROUNDINGS,
    "DepthToSpace.mode": _CHANNEL_ORDERS,
    "GRU.direction": _RECURRENT,
    "Gelu.approximate": frozenset({"none", "tanh"}),
    "GridSample.mode": _RESIZED | {"bicubic"},
    "LSTM.direction": _RECURRENT,
    "NegativeLogLikelihoodLoss.reduction": _LOSSES,
    "Pad.mode": frozenset({"constant", "reflect", "edge", "wrap"}),
    "RNN.direction": _RECURRENT,
    "Resize.coordinate_transformation_mode": frozenset(
        {
            "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners",
            "asymmetric", "tf_half_pixel_for_nn", "tf_crop_and_resize",
        }
    ),
    "Resize.mode": _RESIZED,
    "RoiAlign.coordinate_transformation_mode": frozenset({"half_pixel", "output_half_pixel"}),
    "RoiAlign.mode": frozenset({"avg", "max"}),
    "Scatter.reduction": _SCATTERED,
    "ScatterElements.reduction": _SCATTERED,
    "ScatterND.reduction": _SCATTERED,
    "SoftmaxCrossEntropyLoss.reduction": _LOSSES,
    "SpaceToDepth.mode": _CHANNEL_ORDERS,
    "TensorScatter.mode": frozenset({"linear", "circular"}),
    "Upsample.mode": _RESIZED,
}  # fmt: skip


def check_value(operator: str, attribute: AttributeProto, where: str) -> None:
    """Raise ModelError for what a standard operator's attribute cannot be."""
    if attribute.type == AttributeProto.STRING:
        _check_word(operator, attribute, where)
        return
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
    elif name == "sampling_ratio":
        low, high = 0, _MOST_SAMPLES
    elif name in _PADDINGS:
        low, high = -_LARGEST_EXTENT, _LARGEST_EXTENT
    for value in values:
        if not low <= value <= high:
            raise ModelError(
                f"{where}: attribute {name!r} is {value}; it must lie in {low} to {high}"
            )
    if name in _EXTENTS | _AXES and len(values) > MOST_AXES:
        raise ModelError(f"{where}: attribute {name!r} has {len(values)} numbers, too many axes")


def _check_word(operator: str, attribute: AttributeProto, where: str) -> None:
    name = attribute.name
    if (operator, name) == ("Einsum", "equation"):
        _check_equation(attribute, where)
        return
    allowed = _WORDS.get(f"{operator}.{name}", _WORDS.get(name))
    if allowed is None or attribute.ref_attr_name:
        return
    word = attribute.s.decode(errors="replace")
    if word not in allowed:
        shown = plain_line(word, _LONGEST_WORD)
        raise ModelError(
            f"{where}: attribute {name!r} is {shown!r}; it must be one of "
            f"{', '.join(sorted(allowed))}"
        )


def _check_equation(attribute: AttributeProto, where: str) -> None:
    """Before onnx's shape inference sees it, which never ends on some others."""
    equation = attribute.s.decode(errors="replace").replace(" ", "")
    left, _, result = equation.partition("->")
    if not all(_TERM.fullmatch(term) for term in (*left.split(","), result)):
        raise ModelError(
            f"{where}: attribute 'equation' is {plain_line(equation, _LONGEST_WORD)!r}; it must "
            "consist of letters, commas, an arrow, and at most one ellipsis for each operand"
        )
