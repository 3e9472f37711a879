"""Loop for the reference evaluator of the onnx package, as the standard defines it.

That of onnx 1.23 runs no turn where the condition is left out, joins scan outputs along their
first axis instead of stacking them, and fails at them without a turn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_loop import Loop as OnnxLoop


def reference_evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """The evaluator of the onnx package, with this Loop."""
    return ReferenceEvaluator(model, new_ops=[Loop])


class Loop(OnnxLoop):
    """Turns until the condition is false or their number is reached; both may be left out."""

    op_domain = ""

    def _run(
        self,
        M: Any,
        cond: Any,
        *args: Any,
        context: Any = None,
        body: Any = None,
        attributes: Any = None,
        bindings: Any = None,
    ) -> Any:
        limit = None if M is None else int(np.asarray(M).reshape(-1)[0])
        goes_on = cond is None or bool(np.asarray(cond).reshape(-1)[0])
        states, turn = list(args), 0
        rows: list[list[np.ndarray]] = [[] for _ in range(self.K)]
        while goes_on and (limit is None or turn < limit):
            own = zip(
                self.body.input_names,
                [np.array(turn, np.int64), np.array(True), *states],
                strict=True,
            )
            condition, *results = self._run_body(
                {**(context or {}), **dict(own)}, attributes=attributes, bindings=bindings
            )
            goes_on = bool(np.asarray(condition).reshape(-1)[0])
            states = results[: self.N]
            for gathered, row in zip(rows, results[self.N :], strict=True):
                gathered.append(row)
            turn += 1
        kinds = self.body.output_types[1 + self.N :]
        stacks = [
            np.stack(gathered) if gathered else _no_rows(kind.tensor_type)
            for gathered, kind in zip(rows, kinds, strict=True)
        ]
        return self._check_and_fix_outputs((*states, *stacks))


def _no_rows(kind: onnx.TypeProto.Tensor) -> np.ndarray:
    """A stack without a row; extents that are not declared count as zero."""
    shape = [0, *(dim.dim_value for dim in kind.shape.dim)]
    return np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
