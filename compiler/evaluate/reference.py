"""What a model ought to compute, from somebody else's implementation of ONNX.

ONNX Runtime where it is installed, else the reference evaluator of the onnx
package (plain numpy: slow, and without the operators of `com.microsoft`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from compiler.errors import ModelError
from compiler.evaluate.compare import OTHER_CODES_TOLERANCE, tolerance
from compiler.evaluate.peers import OnnxRuntime, installed

_ROUNDING = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "QGemm", "QuantizeLinear"})


class Reference:
    """An independent implementation of `model`, whose input shapes are fixed.

    `label` names it with its version; `tolerance` is how far from it a right result may be,
    relative to its range. Raises ModelError if it refuses the model.
    """

    def __init__(self, model: onnx.ModelProto, serialized: bytes, threads: int = 1) -> None:
        self.tolerance = tolerance(*_output_dtypes(model))
        if _rounds_to_codes(model):
            self.tolerance = OTHER_CODES_TOLERANCE
        self._outputs = [output.name for output in model.graph.output]
        self._session: OnnxRuntime | None = None
        self._evaluator: onnx.reference.ReferenceEvaluator | None = None
        if installed(OnnxRuntime):
            self._session = OnnxRuntime(serialized, threads, {})
            self.label = f"{OnnxRuntime.label} {self._session.version}"
            return
        import onnx.reference

        try:
            self._evaluator = onnx.reference.ReferenceEvaluator(model)
        except Exception as error:
            raise ModelError(
                f"the onnx reference evaluator refuses the model ({error}); "
                "install tinsmith[verify] to use ONNX Runtime instead"
            ) from error
        self.label = f"onnx reference evaluator {onnx.__version__}"

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's outputs by name, in the model's order."""
        if self._session is not None:
            return self._session.run(inputs)
        assert self._evaluator is not None
        try:
            outputs = self._evaluator.run(self._outputs, dict(inputs))
        except Exception as error:
            raise ModelError(
                f"the onnx reference evaluator failed ({error}); "
                "install tinsmith[verify] to use ONNX Runtime instead"
            ) from error
        return dict(zip(self._outputs, map(np.asarray, outputs), strict=True))


def _output_dtypes(model: onnx.ModelProto) -> list[str]:
    """As ONNX spells them, in lower case."""
    elements = (output.type.tensor_type.elem_type for output in model.graph.output)
    return [onnx.TensorProto.DataType.Name(element).lower() for element in elements]


def _rounds_to_codes(model: onnx.ModelProto) -> bool:
    """Whether values are quantised while the model runs; constant codes round nothing."""
    names = {node.op_type for node in model.graph.node}
    return any(name in _ROUNDING or name.startswith("QLinear") for name in names)
