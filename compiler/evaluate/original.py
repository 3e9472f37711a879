"""The ONNX model that a module was compiled from, with the same inputs bound again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.evaluate.inputs import Domain
from tinsmith.compiler.frontends import CHECKPOINT_SUFFIX
from tinsmith.compiler.frontends.onnx_domains import input_domains
from tinsmith.compiler.frontends.onnx_files import read_model, serialized
from tinsmith.compiler.frontends.onnx_shapes import bind_inputs
from tinsmith.compiler.module.manifest import Manifest


@dataclass(frozen=True)
class OriginalModel:
    """`model` has the module's input shapes and constants; `content` is it serialised.

    `domains` says what its inputs may be (see `tinsmith.compiler.frontends.onnx_domains`).
    `untouched` is the model as it is in the file, with open dimensions, and `constants` as inputs.
    """

    model: onnx.ModelProto
    content: bytes
    domains: dict[str, Domain]
    untouched: onnx.ModelProto
    constants: dict[str, np.ndarray]


def open_original(path: Path, manifest: Manifest) -> OriginalModel:
    """Read the model in `path` and bind its inputs as the module `manifest` describes has them.

    Raises ModelError if the file is unreadable or has other inputs or outputs than the module.
    """
    if path.suffix == CHECKPOINT_SUFFIX:
        raise ModelError(
            f"{path}: is a checkpoint, which no other runtime can run; give an ONNX file"
        )
    proto = read_model(path)
    signature = {tensor.name: tensor.shape for tensor in manifest.inputs}
    constants = CompileConfig.from_dict(
        {"constants": manifest.config.get("constants", {})}
    ).constants
    initializers = {tensor.name for tensor in proto.graph.initializer}
    names = {value.name for value in proto.graph.input} - initializers - set(constants)
    outputs = [value.name for value in proto.graph.output]
    if names != set(signature) or outputs != [tensor.name for tensor in manifest.outputs]:
        raise ModelError(
            f"{path}: is not the model that {manifest.name} was compiled from "
            f"(inputs {', '.join(sorted(names))}; outputs {', '.join(outputs)})"
        )
    shapes = {name: tuple(int(size) for size in shape) for name, shape in signature.items()}
    bound, _, _ = bind_inputs(proto, shapes, dict(constants), str(path))
    content = serialized(bound, str(path))
    tensors = {tensor.name: tensor for tensor in bound.graph.initializer}
    values = {name: onnx.numpy_helper.to_array(tensors[name]) for name in constants}
    return OriginalModel(bound, content, input_domains(bound), proto, values)
