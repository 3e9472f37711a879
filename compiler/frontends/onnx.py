"""ONNX models into Relax.

file -> read safely -> inputs bound to fixed shapes -> functions inlined
     -> constants folded -> operators checked -> Relax module
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm
from onnx import ModelProto, TensorProto
from tvm import relax

from compiler.errors import ModelError
from compiler.frontends.onnx_files import check_model, read_model, serialized
from compiler.frontends.onnx_functions import inline_functions
from compiler.frontends.onnx_importer import GraphImporter
from compiler.frontends.onnx_operators import check_operators, find_converters
from compiler.frontends.onnx_shapes import BoundInput, bind_inputs, fold

_DTYPE_NUMBERS = frozenset(TensorProto.DataType.values())


@dataclass(frozen=True)
class ImportedModel:
    """A model as the compiler takes it up.

    `module` holds one Relax function `main`: its parameters are the model's inputs in the order
    of `input_names`, weights are constants, the body is one dataflow block, and it returns a
    tensor for one output and a tuple for several. Shapes are fixed; a dimension of an output is
    None where it depends on data. `reference` is the ONNX model with the same bindings, for
    comparison with another runtime: as the user wrote it, but folded where inputs were bound to
    constants. `notes` tells what was decided on the way.
    """

    module: tvm.IRModule
    source: str
    input_names: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    input_dtypes: tuple[str, ...]
    output_names: tuple[str, ...]
    output_shapes: tuple[tuple[int | None, ...], ...]
    output_dtypes: tuple[str, ...]
    notes: tuple[str, ...]
    reference: ModelProto

    def reference_bytes(self) -> bytes:
        """`reference` serialised, as ONNX Runtime takes it."""
        return serialized(self.reference, self.source)


def import_onnx(
    model: str | Path | ModelProto,
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
) -> ImportedModel:
    """Import an ONNX model from a file or from memory.

    `shapes` fixes the shape of inputs by name, `constants` replaces inputs by constants; batch
    dimensions left open become 1. Raises `ModelError` and its subclasses: `UnsafeModelError`
    for a file that lies or reaches out of its folder, `ShapeError` for shapes that are unknown
    or contradict, `UnsupportedOpError` naming every operator that cannot be converted.
    """
    if isinstance(model, ModelProto):
        source, loaded = model.graph.name or "model", model
        check_model(loaded, source)
    else:
        source, loaded = str(model), read_model(model)
    bound, inputs, notes = bind_inputs(loaded, shapes or {}, constants or {}, source)
    converters = find_converters()
    inlined = inline_functions(bound, converters, source)
    folded, fold_notes = fold(inlined)
    check_operators(folded, converters, source)
    _check_outputs(folded, source)
    importer = GraphImporter(folded, converters, source)
    module = importer.import_graph(inputs)
    outputs = _outputs(module, source)
    return ImportedModel(
        module=module,
        source=source,
        input_names=tuple(value.name for value in inputs),
        input_shapes=tuple(value.shape for value in inputs),
        input_dtypes=tuple(value.dtype for value in inputs),
        output_names=tuple(output.name for output in bound.graph.output),
        output_shapes=tuple(shape for shape, _ in outputs),
        output_dtypes=tuple(dtype for _, dtype in outputs),
        notes=(*notes, *fold_notes, *importer.notes),
        # ONNX Runtime 1.31 crashes when it inlines a branch whose condition became a constant.
        reference=folded if constants else bound,
    )


def _check_outputs(model: ModelProto, source: str) -> None:
    """Raise ModelError for an output whose elements have no address of their own."""
    for value in model.graph.output:
        element = value.type.tensor_type.elem_type
        name = TensorProto.DataType.Name(element).lower() if element in _DTYPE_NUMBERS else ""
        if name.startswith(("int2", "int4", "uint2", "uint4", "float4", "float8")):
            raise ModelError(
                f"{source}: output {value.name!r} has the dtype {name}, which cannot be returned"
            )


def _outputs(module: tvm.IRModule, source: str) -> list[tuple[tuple[int | None, ...], str]]:
    """Shape and dtype of each output of `main`."""
    result = module["main"].ret_ty
    fields = list(result.fields) if isinstance(result, relax.TupleType) else [result]
    outputs = []
    for index, field in enumerate(fields):
        if not isinstance(field, relax.TensorType) or field.ndim < 0:
            raise ModelError(f"{source}: the rank of output {index} is not known")
        shape = field.shape
        if isinstance(shape, relax.ShapeExpr):
            sizes = tuple(getattr(dim, "value", None) for dim in shape.values)
        else:
            sizes = (None,) * field.ndim
        outputs.append((sizes, str(field.dtype)))
    return outputs


__all__ = ["BoundInput", "ImportedModel", "import_onnx"]
