"""Torch-Pruning on the same checkpoint: its channels, in our modules and with our distillation.

The ONNX file becomes a PyTorch network of ordinary layers, Torch-Pruning shrinks that, and the
weights go back into the file; so both sides run the same kernels and can be trained by the same
code. Part of benchmarks/prune.py (`--only torch-pruning`); needs torch and torch-pruning.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tinsmith.compiler.calibration import open_calibration
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.compiler.pruning.distillation import Distiller
from tinsmith.compiler.pruning.observed import compile_graph
from tinsmith.compiler.pruning.pruner import readable
from tinsmith.compiler.workshop import workshop
from tinsmith.targets.registry import get_target

NORMS = {"l1": 1, "l2": 2}


def missing() -> str:
    """What has to be installed first; empty if nothing."""
    names = {"torch": "torch", "torch_pruning": "torch-pruning"}
    absent = [package for name, package in names.items() if importlib.util.find_spec(name) is None]
    return f"pip install {' '.join(absent)}" if absent else ""


def pruned_by_torch_pruning(
    model: Path, image: np.ndarray, ratio: float, criterion: str, alignment: int
) -> onnx.ModelProto:
    """The model without that share of the channels of every group that Torch-Pruning finds.

    `criterion` is a key of `NORMS`. Widths are rounded to multiples of `alignment` as ours are (by
    itself it would round down), so that both sides differ in which channels go, not in how
    many. Raises ValueError for an operator that `_network` has no layer for.
    """
    import torch
    import torch_pruning

    proto = onnx.load(model)
    network = _network(proto)

    def share(channels: int) -> float:
        width = max(1, round(channels * (1 - ratio) / alignment)) * alignment
        return 1 - min(width, channels) / channels

    pruner = torch_pruning.pruner.MagnitudePruner(
        network,
        torch.from_numpy(image),
        importance=torch_pruning.importance.MagnitudeImportance(p=NORMS[criterion]),
        pruning_ratio=ratio,
        pruning_ratio_dict={
            layer: share(layer.out_channels)
            for layer in network.modules()
            if isinstance(layer, torch.nn.Conv2d)
        },
        ignored_layers=[m for m in network.modules() if isinstance(m, torch.nn.Linear)],
    )
    pruner.step()
    arrays = {
        name: parameter.detach().numpy()
        for layer, names in network.stored
        for name, parameter in zip(names, (layer.weight, layer.bias), strict=False)
    }
    for tensor in proto.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(
                numpy_helper.from_array(np.ascontiguousarray(arrays[tensor.name]), tensor.name)
            )
    del proto.graph.value_info[:]
    return proto


def distilled_top1(
    model: Path,
    pruned: onnx.ModelProto,
    config: PruneConfig,
    images: np.ndarray,
    classes: np.ndarray,
    threads: int,
) -> float:
    """The share of right answers after the distillation that `config` asks for, from the model."""
    shapes = {"input": (1, *images.shape[1:])}
    here = workshop(CompileConfig(threads=threads), get_target("native"))
    whole, student = (readable(import_onnx(m, shapes).module) for m in (model, pruned))
    source = open_calibration(config.calibration, {"input": (shapes["input"], "float32")})
    distiller = Distiller(config, whole, source, here)
    trained, _ = distiller.distilled(student, {})
    with compile_graph(trained, here) as compiled:
        chosen = [int(compiled.run([image[None]]).outputs[0].argmax()) for image in images]
    return float((np.array(chosen) == classes).mean())


def _network(proto: onnx.ModelProto) -> Any:
    """The graph as a torch module of `Conv2d` and `Linear`; `stored` names their weights."""
    import torch

    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList()
            self.stored: list[tuple[Any, list[str]]] = []
            self._steps = [self._step(node) for node in proto.graph.node]

        def forward(self, image: Any) -> Any:
            tensors = {proto.graph.input[0].name: image}
            for function, operands, result in self._steps:
                tensors[result] = function(*(tensors[name] for name in operands))
            return tensors[proto.graph.output[0].name]

        def _step(self, node: onnx.NodeProto) -> tuple[Any, list[str], str]:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            operands = [name for name in node.input if name not in constants]
            arrays = [constants[name] for name in node.input if name in constants]
            function: Any
            if node.op_type == "Conv":
                function = self._layer(node, _convolution(attributes, arrays), arrays)
            elif node.op_type == "Gemm" and attributes.get("transB"):
                linear = torch.nn.Linear(*arrays[0].shape[::-1])
                function = self._layer(node, linear, arrays)
            elif node.op_type == "ReduceMean":
                axes = attributes.get("axes") or arrays[0].tolist()
                keep = bool(attributes.get("keepdims", 1))

                def function(x: Any) -> Any:
                    return x.mean(axes, keepdim=keep)
            elif node.op_type in ("Relu", "Add"):
                function = {"Relu": torch.relu, "Add": torch.add}[node.op_type]
            else:
                raise ValueError(f"{node.op_type} ({node.name}) has no layer here")
            return function, operands, node.output[0]

        def _layer(self, node: onnx.NodeProto, layer: Any, arrays: list[np.ndarray]) -> Any:
            with torch.no_grad():
                for parameter, array in zip((layer.weight, layer.bias), arrays, strict=False):
                    parameter.copy_(torch.tensor(array))
            self.layers.append(layer)
            self.stored.append((layer, [name for name in node.input if name in constants]))
            return layer

    return Network().eval()


def _convolution(attributes: dict[str, Any], arrays: list[np.ndarray]) -> Any:
    import torch

    pads = attributes.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:]:
        raise ValueError(f"a convolution with pads {pads} has no layer here")
    groups, shape = attributes.get("group", 1), arrays[0].shape
    return torch.nn.Conv2d(
        shape[1] * groups,
        shape[0],
        shape[2:],
        tuple(attributes.get("strides", (1, 1))),
        tuple(pads[:2]),
        tuple(attributes.get("dilations", (1, 1))),
        groups,
        bias=len(arrays) > 1,
    )
