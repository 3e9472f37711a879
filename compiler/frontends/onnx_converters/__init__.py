"""Converters for ONNX operators that TVM's front end lacks or gets wrong."""

from __future__ import annotations

from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from compiler.frontends.onnx_converters.gathering import Gather
from compiler.frontends.onnx_converters.recurrent import GRU, LSTM, RNN
from compiler.frontends.onnx_converters.selection import Pad, Slice
from compiler.frontends.onnx_converters.variadic import Max, Mean, Min, Sum

# Keys are (domain, operator); the standard domain is the empty string.
OWN_CONVERTERS: dict[tuple[str, str], type[OnnxOpConverter]] = {
    ("", "GRU"): GRU,
    ("", "Gather"): Gather,
    ("", "LSTM"): LSTM,
    ("", "Max"): Max,
    ("", "Mean"): Mean,
    ("", "Min"): Min,
    ("", "Pad"): Pad,
    ("", "RNN"): RNN,
    ("", "Slice"): Slice,
    ("", "Sum"): Sum,
}
