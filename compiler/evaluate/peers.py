"""Other runtimes of the same model: the reference of `verify` and the rivals of `bench`.

Each class opens an ONNX file with a number of threads and runs it on named numpy
arrays. The runtimes are extras: `available` says which are installed, and nothing
here imports one before it is opened.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from tinsmith.compiler.errors import ModelError

Arrays = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
OnnxModel = Path | bytes  # a file, or a serialised ModelProto


class Peer(Protocol):
    """A runtime with a model loaded."""

    label: ClassVar[str]
    package: ClassVar[str]
    precisions: ClassVar[frozenset[str]]  # that it can compute a float32 model in
    version: str

    def __init__(
        self, model: OnnxModel, threads: int, shapes: Shapes, precision: str = "float32"
    ) -> None:
        """Open `model`; `shapes` are the concrete shapes of its inputs.

        `precision`, one of `precisions`, is what a float32 model is computed in.
        """

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The model's outputs by name."""


class OnnxRuntime:
    """ONNX Runtime on its CPU provider, graph optimisations on or, for a second opinion, off.

    `exact`: sums of products of bytes do not saturate, which its fast kernels do on processors
    without the dot products of VNNI.
    """

    label: ClassVar[str] = "ONNX Runtime"
    package: ClassVar[str] = "onnxruntime"
    precisions: ClassVar[frozenset[str]] = frozenset({"float32"})

    def __init__(
        self,
        model: OnnxModel,
        threads: int,
        shapes: Shapes,
        precision: str = "float32",
        optimised: bool = True,
        exact: bool = False,
    ) -> None:
        """`exact` keeps products of 8-bit integers from saturating on CPUs without VNNI."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if exact:
            options.add_session_config_entry("session.x64quantprecision", "1")
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else os.fspath(model),
                options,
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:  # the package raises its own unrelated classes
            raise ModelError(f"{_name(model)}: ONNX Runtime refuses it: {_line(error)}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.version = str(onnxruntime.__version__)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return dict(zip(self._outputs, self._session.run(None, dict(inputs)), strict=True))


class OpenVino:
    """OpenVINO's CPU plug-in for latency, in the precision asked for (it would choose its own)."""

    label: ClassVar[str] = "OpenVINO"
    package: ClassVar[str] = "openvino"
    precisions: ClassVar[frozenset[str]] = frozenset({"float32", "bfloat16"})

    def __init__(
        self, model: OnnxModel, threads: int, shapes: Shapes, precision: str = "float32"
    ) -> None:
        os.environ.setdefault("OPENVINO_TELEMETRY_DISABLE", "1")
        import openvino

        core = openvino.Core()
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        }
        try:
            graph = core.read_model(model if isinstance(model, bytes) else os.fspath(model))
            graph.reshape({name: list(shape) for name, shape in shapes.items()})
            self._compiled = core.compile_model(graph, "CPU", settings)
        except Exception as error:
            raise ModelError(f"{_name(model)}: OpenVINO refuses it: {_line(error)}") from error
        self._request = self._compiled.create_infer_request()
        self._outputs = [output.get_any_name() for output in self._compiled.outputs]
        self.version = str(openvino.__version__).split("-")[0]

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        results = self._request.infer(dict(inputs), share_inputs=True)
        return dict(zip(self._outputs, results.values(), strict=True))


PEERS: tuple[type[Peer], ...] = (OnnxRuntime, OpenVino)


def installed(peer: type[Peer]) -> bool:
    """Whether the peer's package can be imported (it is not imported for that)."""
    return importlib.util.find_spec(peer.package) is not None


def _name(model: OnnxModel) -> str:
    return "model" if isinstance(model, bytes) else str(model)


def _line(error: BaseException) -> str:
    """The first line of a foreign error message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
