"""Converters for ONNX operators that TVM's front end lacks or gets wrong."""

from __future__ import annotations

from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from compiler.frontends.onnx_converters import (
    activations,
    blocked,
    division,
    elementwise,
    gathering,
    normalization,
    pooling,
    quantization,
    quantized_integer,
    quantized_linear,
    rearrangement,
    recurrent,
    reductions,
    resampling,
    running,
    selection,
    spectrum,
    variadic,
)

_OF_THE_STANDARD: tuple[type[OnnxOpConverter], ...] = (
    activations.Celu,
    activations.Elu,
    activations.LeakyRelu,
    activations.Selu,
    activations.ThresholdedRelu,
    division.Div,
    division.Mod,
    elementwise.Cast,
    elementwise.CastLike,
    elementwise.Dropout,
    elementwise.Equal,
    elementwise.IsInf,
    elementwise.Mish,
    elementwise.Pow,
    elementwise.Softplus,
    gathering.Gather,
    normalization.BatchNormalization,
    normalization.LayerNormalization,
    normalization.LpNormalization,
    normalization.RMSNormalization,
    pooling.AveragePool,
    pooling.LpPool,
    pooling.MaxPool,
    pooling.MaxUnpool,
    quantization.DequantizeLinear,
    quantization.QuantizeLinear,
    quantized_integer.ConvInteger,
    quantized_integer.DynamicQuantizeLinear,
    quantized_integer.MatMulInteger,
    quantized_linear.QLinearConv,
    quantized_linear.QLinearMatMul,
    rearrangement.ConvTranspose,
    rearrangement.OneHot,
    rearrangement.ReverseSequence,
    rearrangement.RoiAlign,
    rearrangement.SpaceToDepth,
    recurrent.GRU,
    recurrent.LSTM,
    recurrent.RNN,
    reductions.ReduceLogSumExp,
    resampling.Resize,
    resampling.Upsample,
    running.CumSum,
    selection.Pad,
    selection.Slice,
    spectrum.DFT,
    spectrum.STFT,
    variadic.Max,
    variadic.Mean,
    variadic.Min,
    variadic.Sum,
)

_OF_MICROSOFT: tuple[type[OnnxOpConverter], ...] = (
    blocked.MatMulNBits,
    quantization.DequantizeLinear,
    quantization.QuantizeLinear,
    quantized_integer.DynamicQuantizeMatMul,
    quantized_integer.MatMulIntegerToFloat,
    quantized_linear.QGemm,
    quantized_linear.QLinearAdd,
    quantized_linear.QLinearAveragePool,
    quantized_linear.QLinearConcat,
    quantized_linear.QLinearConv,
    quantized_linear.QLinearGlobalAveragePool,
    quantized_linear.QLinearLeakyRelu,
    quantized_linear.QLinearMul,
    quantized_linear.QLinearReduceMean,
    quantized_linear.QLinearSigmoid,
    quantized_linear.QLinearSoftmax,
    quantized_linear.QLinearWhere,
)

# Keys are (domain, operator), the standard domain being the empty string. A converter class is
# named after its operator.
OWN_CONVERTERS: dict[tuple[str, str], type[OnnxOpConverter]] = {
    (domain, converter.__name__): converter
    for domain, converters in (("", _OF_THE_STANDARD), ("com.microsoft", _OF_MICROSOFT))
    for converter in converters
}
