"""Reading and writing by index never leaves a tensor, whatever the indices are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.graph.index_bounds import integer_range
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import (
    constant,
    constant_array,
    element_count,
    element_type,
    operator_name,
    static_shape,
)

_INT32 = np.iinfo("int32")


@tvm.transform.module_pass(opt_level=0, name="ClampIndices")
class ClampIndices:
    """Bring indices that are not known to be within their tensor back into it.

    Before::

        y = take(x: (10, 4), i: (3,) int64, axis=0, mode="fast")

    After::

        n = where(less(i, 0), add(i, 10), i)
        c = minimum(maximum(n, 0), 9)
        y = take(x, c, axis=0, mode="clip")

    Negative indices count from the end; what is still outside becomes the nearest index inside.
    The operators: `take`, `gather_elements`, `gather_nd`, `scatter_elements`, `scatter_nd`,
    `index_tensor`, `index_put`. Of the modes of `take`, "fast" becomes "clip", and indices of
    "clip" that need 64 bits are clamped before kernels, which count in 32, see them; "wrap" and
    "nan" stay. Fusion computes the indices where they are read. Narrow integers are widened.

    Left alone: indices whose range is known to lie inside (`index_bounds`), and tensors of
    symbolic shape, of which `take` alone is made safe, by its mode "wrap". Constants are
    clamped here and now. Reading an empty tensor gives zeros.
    """

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        return _Clamper(module).run()


class _Clamper(BlockRewriter):
    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        name = operator_name(value)
        if name == "relax.take":
            return self._take(value)
        if name in ("relax.gather_elements", "relax.scatter_elements"):
            return self._along_axis(value)
        if name in ("relax.gather_nd", "relax.scatter_nd"):
            return self._by_coordinates(value, str(name))
        if name in ("relax.index_tensor", "relax.index_put"):
            return self._by_tensors(value)
        return value

    def _take(self, call: relax.Call) -> relax.Expr:
        shape, mode = static_shape(call.args[0]), str(call.attrs.mode)
        if not isinstance(call.args[1].ty, relax.TensorType):
            return call
        if shape is None:
            # Counts from the end, and round and round outside.
            axis = None if call.attrs.axis is None else int(call.attrs.axis)
            safe = relax.op.take(*call.args, axis=axis, mode="wrap")
            return safe if mode == "fast" else call
        axis = None if call.attrs.axis is None else int(call.attrs.axis)
        extent = element_count(shape) if axis is None else shape[axis]
        if not extent:
            return self._nothing(call)
        if mode == "fast":
            indices = self._inside(call.args[1], [extent])
        elif mode == "clip" and not self._narrow(call.args[1]):
            indices = self._inside(call.args[1], [extent], from_end=False)
        else:
            return call
        if indices.same_as(call.args[1]) and mode == "clip":
            return call
        # TVM warns of "fast", whatever the indices are.
        return relax.op.take(call.args[0], indices, axis=axis, mode="clip")

    def _narrow(self, indices: relax.Expr) -> bool:
        """Whether the indices are what they are in 32 bits, in which kernels count."""
        bounds = integer_range(indices, self.definition)
        return bounds is not None and _INT32.min <= bounds[0] and bounds[1] <= _INT32.max

    def _along_axis(self, call: relax.Call) -> relax.Expr:
        shape = static_shape(call.args[0])
        if shape is None:
            return call
        extent = shape[int(call.attrs.axis)]
        return self._with_indices(call, 1, [extent]) if extent else self._nothing(call)

    def _by_coordinates(self, call: relax.Call, name: str) -> relax.Expr:
        shape, indices = static_shape(call.args[0]), static_shape(call.args[1])
        if shape is None or not indices:
            return call
        first = int(call.attrs.batch_dims) if name == "relax.gather_nd" else 0
        extents = shape[first : first + indices[-1]]
        return self._with_indices(call, 1, extents) if all(extents) else self._nothing(call)

    def _by_tensors(self, call: relax.Call) -> relax.Expr:
        shape = static_shape(call.args[0])
        indices = call.args[1]
        if isinstance(indices, relax.Var):
            indices = self.definition(indices)
        if shape is None or not isinstance(indices, relax.Tuple):
            return call
        if not all(shape[: len(indices.fields)]):
            return self._nothing(call)
        fields = [
            self._inside(field, [extent])
            for field, extent in zip(indices.fields, shape, strict=False)
        ]
        if all(new.same_as(old) for new, old in zip(fields, indices.fields, strict=True)):
            return call
        arguments = [call.args[0], relax.Tuple(fields), *call.args[2:]]
        return relax.Call(call.op, arguments, call.attrs, call.ty_args)

    def _with_indices(self, call: relax.Call, position: int, extents: Sequence[int]) -> relax.Expr:
        indices = self._inside(call.args[position], extents)
        if indices.same_as(call.args[position]):
            return call
        arguments = [*call.args[:position], indices, *call.args[position + 1 :]]
        return relax.Call(call.op, arguments, call.attrs, call.ty_args)

    def _nothing(self, call: relax.Call) -> relax.Expr:
        """Zeros, for there is nothing to read; what is written into nothing stays nothing."""
        shape, dtype = static_shape(call), element_type(call)
        if shape is None or dtype is None:
            return call
        return constant(np.zeros(shape, dtype))

    def _inside(
        self, indices: relax.Expr, extents: Sequence[int], from_end: bool = True
    ) -> relax.Expr:
        """`indices` within `extents`: one for all, or one for each entry of the last axis.

        Negative ones count from the end if `from_end`.
        """
        dtype = element_type(indices)
        if dtype is None or not dtype.startswith(("int", "uint")):
            return indices
        known = constant_array(indices)
        sizes = np.array(extents[0] if len(extents) == 1 else extents)
        if known is not None:
            wide = known.astype(np.int64) if known.dtype != np.uint64 else known
            counted = np.where(wide < 0, wide + sizes, wide) if from_end else wide
            inside = np.clip(counted, 0, sizes - 1)
            # Indices inside stay in their dtype.
            return indices if np.array_equal(inside, known) else constant(inside.astype(np.int64))
        bounds = integer_range(indices, self.definition)
        smallest = min(extents)
        if bounds is not None and bounds[0] >= 0 and bounds[1] < smallest:
            return indices
        wide = self._widened(indices, dtype)
        kind = str(element_type(wide))
        extent, last = (constant(np.asarray(n, kind)) for n in (sizes, sizes - 1))
        if not kind.startswith("uint"):
            zero = constant(np.asarray(0, kind))
            if from_end and (bounds is None or bounds[0] < 0):
                counted = self.emit(relax.op.add(wide, extent))
                wide = self.emit(
                    relax.op.where(self.emit(relax.op.less(wide, zero)), counted, wide)
                )
            wide = self.emit(relax.op.maximum(wide, zero))
        wide = self.emit(relax.op.minimum(wide, last))
        return self.emit(relax.op.astype(wide, "int64")) if kind == "uint64" else wide

    def _widened(self, indices: relax.Expr, dtype: str) -> relax.Expr:
        if dtype in ("int32", "int64", "uint64"):
            return indices
        return self.emit(relax.op.astype(indices, "int64" if dtype == "uint32" else "int32"))
