"""Converters for ONNX operators that TVM's front end lacks or gets wrong."""

from __future__ import annotations

from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from compiler.frontends.onnx_converters import (
    elementwise,
    gathering,
    normalization,
    rearrangement,
    recurrent,
    resampling,
    selection,
    spectrum,
    variadic,
)

_OF_THE_STANDARD: tuple[type[OnnxOpConverter], ...] = (
    elementwise.Cast,
    elementwise.CastLike,
    elementwise.Dropout,
    elementwise.IsInf,
    elementwise.Mish,
    elementwise.Pow,
    elementwise.Softplus,
    gathering.Gather,
    normalization.BatchNormalization,
    normalization.LayerNormalization,
    normalization.LpNormalization,
    normalization.RMSNormalization,
    rearrangement.ConvTranspose,
    rearrangement.OneHot,
    rearrangement.ReverseSequence,
    rearrangement.RoiAlign,
    rearrangement.SpaceToDepth,
    recurrent.GRU,
    recurrent.LSTM,
    recurrent.RNN,
    resampling.Resize,
    resampling.Upsample,
    selection.Pad,
    selection.Slice,
    spectrum.DFT,
    spectrum.STFT,
    variadic.Max,
    variadic.Mean,
    variadic.Min,
    variadic.Sum,
)

# Keys are (domain, operator), the standard domain being the empty string. A converter class is
# named after its operator.
OWN_CONVERTERS: dict[tuple[str, str], type[OnnxOpConverter]] = {
    ("", converter.__name__): converter for converter in _OF_THE_STANDARD
}
