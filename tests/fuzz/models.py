"""Small models of every kind that the front end reads: what mutations begin with."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from tests.fuzz import networks, quantized, structures
from tests.fuzz.building import FLOAT, model, node, value


@dataclass(frozen=True)
class Sample:
    """A model as the bytes of its file, and the files that lie beside it by name."""

    model: bytes
    beside: dict[str, bytes] = field(default_factory=dict)


def samples() -> dict[str, Sample]:
    """Models by name; the same ones every time."""
    models = {
        "conv": networks.convolutions(),
        "pools": networks.pools(),
        "shapes": networks.shape_arithmetic(),
        "transformer": networks.transformer(),
        "lstm": networks.recurrent(),
        "if": structures.branches(),
        "loop": structures.loop(),
        "scan": structures.scan(),
        "qdq": quantized.quantize_dequantize(),
        "qlinear": quantized.quantized_linear(),
        "microsoft": quantized.microsoft(),
        "functions": structures.functions(),
        "sequences": structures.sequences(),
        "optional": structures.optional(),
        "sparse": structures.sparse(),
        "resize": networks.resize(),
        "indices": networks.indices(),
        "constants": networks.constants(),
    }
    result = {name: Sample(made.SerializeToString()) for name, made in models.items()}
    result["external"] = _external()
    return result


def _external() -> Sample:
    weights = np.arange(16 * 8 + 8, dtype=np.float32)
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["y"])]
    result = model(nodes, [value("x", [1, 16])], [value("y", None)])
    for name, dims, offset, length in (("w", [16, 8], 0, 512), ("b", [8], 512, 32)):
        tensor = result.graph.initializer.add(name=name, dims=dims, data_type=FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        for key, content in (("location", "ext.bin"), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(content))
    return Sample(result.SerializeToString(), {"ext.bin": weights.tobytes()})
