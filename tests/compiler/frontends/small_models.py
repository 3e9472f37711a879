"""Small ONNX models and a slow but independent way to run what was imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import ModelProto, TensorProto, helper, numpy_helper
from tvm import relax

from tinsmith.compiler.frontends.onnx.model import ImportedModel
from tinsmith.compiler.frontends.onnx.reference import OnnxReference

OPSET = 18


def value(name: str, shape: Sequence[int | str | None] | None, dtype: int = TensorProto.FLOAT):
    """A graph input or output; None in a shape is a dimension without a name."""
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str],
    initializers: Mapping[str, np.ndarray] | None = None,
    opset: int = OPSET,
    **options: Any,
) -> ModelProto:
    """A model of one graph named `small`."""
    graph = helper.make_graph(
        list(nodes),
        "small",
        list(inputs),
        [value(name, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (initializers or {}).items()],
    )
    imports = options.pop("opset_imports", [helper.make_opsetid("", opset)])
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **options)


def linear_model() -> ModelProto:
    """y = x @ w for x of shape (batch, 4), w of shape (4, 3)."""
    weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    return model([node], [value("x", ["batch", 4])], ["y"], {"w": weights})


def run(imported: ImportedModel, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs of `imported`, compiled by TVM's default pipeline."""
    return execute(imported.module, *inputs)


def execute(module: tvm.IRModule, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs of `main`, compiled by TVM's default pipeline."""
    executable = tvm.compile(module, tvm.target.Target({"kind": "llvm"}))
    machine = relax.VirtualMachine(executable, tvm.cpu())
    result = machine["main"](*[tvm.runtime.tensor(array) for array in inputs])
    tensors = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
    return [tensor.numpy() for tensor in tensors]


def original(imported: ImportedModel) -> ModelProto:
    """The ONNX model that the reference of an imported one runs."""
    reference = imported.required_reference()
    assert isinstance(reference, OnnxReference)
    return reference.model


def random(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Normally distributed float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
