"""The ONNX model that a module was compiled from, with the same inputs bound again."""

from __future__ import annotations

import os
from functools import partial

from onnx import ModelProto, numpy_helper

from tinsmith.compiler.frontends.frontend import ForPeers, Interface, OriginalModel
from tinsmith.compiler.frontends.onnx.domains import input_domains
from tinsmith.compiler.frontends.onnx.files import read_model, serialized
from tinsmith.compiler.frontends.onnx.reference import OnnxReference
from tinsmith.compiler.frontends.onnx.shapes import bind_inputs


def original_of(
    model: str | os.PathLike[str] | ModelProto, source: str, interface: Interface
) -> OriginalModel:
    """The model, from a file or from memory, as a module with `interface` has it.

    Raises ModelError if the file is unreadable or has other inputs or outputs than the module.
    """
    proto = model if isinstance(model, ModelProto) else read_model(model)
    initializers = {tensor.name for tensor in proto.graph.initializer}
    names = {value.name for value in proto.graph.input} - initializers - set(interface.constants)
    interface.check(source, names, [value.name for value in proto.graph.output])
    bound, _, _ = bind_inputs(proto, interface.shapes, interface.constants, source)
    content = serialized(bound, source)
    tensors = {tensor.name: tensor for tensor in bound.graph.initializer}
    values = {name: numpy_helper.to_array(tensors[name]) for name in interface.constants}
    return OriginalModel(
        reference=partial(OnnxReference, bound, content),
        domains=input_domains(bound),
        for_peers=ForPeers(content, partial(serialized, proto, source), values),
    )
