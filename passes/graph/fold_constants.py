"""Constant folding: numpy for what it can do, TVM's compiled folding for the rest."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from tinsmith.passes.graph.evaluation import EVALUATORS
from tinsmith.passes.graph.quantized_constants import is_quantized_constant, permuted_quantized
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import (
    constant,
    constant_array,
    element_count,
    element_type,
    operator_name,
    shape_values,
    static_shape,
)

# A tensor made larger than this by repeating its elements is cheaper to compute than to store.
_LARGEST_EXPANSION = 64 * 1024


@tvm.transform.module_pass(opt_level=0, name="FoldConstants")
class FoldConstants:
    """Evaluate calls whose operands are all constants.

    Before::

        w: (4, 8) = permute_dims(const (8, 4), axes=[1, 0])
        b: (1, 4, 1, 1) = reshape(const (4,), shape=[1, 4, 1, 1])
        y: (2, 4) = matmul(x: (2, 8), w)

    After::

        y: (2, 4) = matmul(x: (2, 8), const (4, 8))

    The operators in `tinsmith.passes.graph.evaluation` are evaluated by numpy. Other
    calls of constants, kernels included, go to TVM's own `FoldConstant` one by
    one: it compiles each (about 30 ms), and on a whole module it would also
    lower calls that it cannot fold. `shape_of` a statically shaped tensor and
    conversions of shapes to tensors fold too.

    With `keep_quantized`, quantised weights stay so: a `dequantize` of a constant
    of 8 bits and at least two axes is not evaluated, and a `permute_dims` of one
    is carried out on the integers.

    Left alone: results that repeat a small constant into a large one
    (`broadcast_to`, `full`), everything with a symbolic shape, and calls of external
    functions, compressed weights among them.
    """

    def __init__(self, keep_quantized: bool = False) -> None:
        self.keep_quantized = keep_quantized

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return _ConstantFolder(module, self.keep_quantized).run()


class _ConstantFolder(BlockRewriter):
    def __init__(self, module: tvm.IRModule, keep_quantized: bool) -> None:
        super().__init__(module)
        self._keep_quantized = keep_quantized

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        name = operator_name(value)
        # What an external function does is not known here.
        if name is None or name == "relax.call_pure_packed":
            return value
        if name == "relax.shape_of":
            shape = static_shape(value.args[0])
            return value if shape is None else relax.ShapeExpr(shape)
        if name == "relax.shape_to_tensor":
            return self._shape_to_tensor(value)
        if self._keep_quantized:
            if is_quantized_constant(value):
                return value
            if name == "relax.permute_dims":
                weights = self.definition(value.args[0])
                if is_quantized_constant(weights):
                    return permuted_quantized(weights, value.attrs.axes)
        operands = self._constant_operands(value)
        shape = static_shape(value)
        if operands is None or shape is None:
            return value
        largest = max([_LARGEST_EXPANSION, *(operand.size for operand in operands)])
        if element_count(shape) > largest and name != "relax.concat":
            return value
        evaluator = EVALUATORS.get(name)
        if evaluator is None:
            return self._compiled(value) if operands else value
        with np.errstate(all="ignore"):
            result = evaluator(value, operands)
        if result is None:
            return self._compiled(value)
        result = np.asarray(result).astype(str(element_type(value)), copy=False)
        return constant(result) if result.shape == shape else value

    def _compiled(self, call: relax.Call) -> relax.Expr:
        """The value of a call of constants as TVM folds it; the call itself if it does not."""
        functions = {}
        if operator_name(call) == "relax.call_tir":
            functions[call.args[0]] = self.module[call.args[0]]
        builder = relax.BlockBuilder(tvm.IRModule(functions))
        with builder.function("folded", []):
            with builder.dataflow():
                result = builder.emit_output(builder.emit(call))
            builder.emit_func_output(result)
        folded = relax.transform.FoldConstant()(builder.get())["folded"]
        # Folded, the function has no binding left and its body is the constant.
        return folded.body.body if isinstance(folded.body.body, GenericConst) else call

    def _shape_to_tensor(self, call: relax.Call) -> relax.Expr:
        source = call.args[0]
        shape = source if isinstance(source, relax.ShapeExpr) else self.definition(source)
        if not isinstance(shape, relax.ShapeExpr):
            return call
        extents = shape_values(shape)
        return call if extents is None else constant(np.asarray(extents, dtype="int64"))

    @staticmethod
    def _constant_operands(call: relax.Call) -> list[np.ndarray] | None:
        """The values of all tensor operands; None if any of them is not constant."""
        arrays: list[np.ndarray] = []
        for argument in call.args:
            fields = argument.fields if isinstance(argument, relax.Tuple) else [argument]
            for field in fields:
                if not isinstance(field.ty, relax.TensorType):
                    continue
                array = constant_array(field)
                if array is None:
                    return None
                arrays.append(array)
        return arrays
