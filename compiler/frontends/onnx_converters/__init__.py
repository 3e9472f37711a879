"""Converters for ONNX operators that TVM's front end lacks or gets wrong."""

from __future__ import annotations

from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

OWN_CONVERTERS: dict[tuple[str, str], type[OnnxOpConverter]] = {}
