"""ONNX models into Relax.

file -> read safely -> inputs bound to fixed shapes -> 16-bit floats widened
     -> functions inlined -> constants folded -> operators checked -> Relax module
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, TensorProto

from tinsmith.compiler.dimensions.ranges import Size, highest
from tinsmith.compiler.errors import ModelError, ShapeError
from tinsmith.compiler.frontends.imported import ImportedModel, described_outputs
from tinsmith.compiler.frontends.onnx.batch import at_bound, open_axes, reference_at
from tinsmith.compiler.frontends.onnx.domains import input_domains
from tinsmith.compiler.frontends.onnx.files import check_model, read_model, serialized
from tinsmith.compiler.frontends.onnx.functions import inline_functions
from tinsmith.compiler.frontends.onnx.halves import widen_halves
from tinsmith.compiler.frontends.onnx.importer import GraphImporter, variable_name
from tinsmith.compiler.frontends.onnx.limits import budget_for
from tinsmith.compiler.frontends.onnx.old_versions import modernized
from tinsmith.compiler.frontends.onnx.operators import check_operators, find_converters
from tinsmith.compiler.frontends.onnx.order import in_order
from tinsmith.compiler.frontends.onnx.reference import OnnxReference
from tinsmith.compiler.frontends.onnx.schemas import check_nodes
from tinsmith.compiler.frontends.onnx.shapes import BoundInput, bind_inputs, fold, resized
from tinsmith.compiler.plain_text import plain_line

# Names in a file may be of any length.
_LONGEST_NAME = 200
_DTYPE_NUMBERS = frozenset(TensorProto.DataType.values())


def import_onnx(
    model: str | os.PathLike[str] | ModelProto,
    shapes: Mapping[str, Sequence[Size]] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    batch: Size | None = None,
) -> ImportedModel:
    """Import an ONNX model from a file or from memory.

    `shapes` fixes the shape of inputs by name, `constants` replaces inputs by constants; batch
    dimensions left open become `batch`, or 1. A range stays open: the graph is that of its
    largest size. Raises `ModelError` and its subclasses: `UnsafeModelError`
    for a file that lies or reaches out of its folder, `ShapeError` for shapes that are unknown
    or contradict, `UnsupportedOpError` naming every operator that cannot be converted.
    """
    if isinstance(model, ModelProto):
        source, loaded = model.graph.name or "model", model
        check_model(loaded, source)
    else:
        source, loaded = str(model), read_model(model)
    loaded = modernized(in_order(loaded, source), source)
    axes = open_axes(loaded, shapes or {}, batch, source)
    size = None if batch is None else highest(batch)
    fixed = at_bound(shapes or {})
    bound, inputs, notes = bind_inputs(loaded, fixed, constants or {}, source, size)
    other_sizes = resized(loaded, fixed)
    converters = find_converters()
    widened = widen_halves(bound)
    inlined = inline_functions(widened, converters, source)
    if inlined is not widened:
        # What a call leaves out, the nodes of the body lack.
        check_nodes(inlined, source)
    folded, fold_notes = fold(inlined)
    check_operators(folded, converters, source)
    _check_outputs(folded, source)
    budget = budget_for(folded, [value.shape for value in inputs], bool(shapes), source)
    importer = GraphImporter(folded, converters, source, budget)
    try:
        module = importer.import_graph(inputs, _declared_ranks(loaded))
        outputs = described_outputs(module, source)
    except ModelError as error:
        if not other_sizes:
            raise
        raise ShapeError(
            f"{error}; it may depend on the size of input {other_sizes}, which --shape changes"
        ) from error
    if other_sizes:
        notes.append(f"another size than the file's: input {other_sizes}")
    # ONNX Runtime 1.31 crashes when it inlines a branch whose condition became a constant.
    original = folded if constants else bound

    def reference(threads: int = 1, size: int | None = None) -> OnnxReference:
        sized = original if size is None or axes is None else reference_at(original, axes, size)
        return OnnxReference(sized, serialized(sized, source), threads)

    return ImportedModel(
        module=module,
        source=source,
        input_names=tuple(value.name for value in inputs),
        input_shapes=tuple(value.shape for value in inputs),
        input_dtypes=tuple(value.dtype for value in inputs),
        output_names=tuple(output.name for output in bound.graph.output),
        output_shapes=tuple(shape for shape, _ in outputs),
        output_dtypes=tuple(dtype for _, dtype in outputs),
        domains=input_domains(folded),
        notes=(*notes, *fold_notes, *dict.fromkeys(importer.notes)),
        reference=reference,
        node_names=node_names(original),
        open_axes=axes,
    )


def node_names(model: ModelProto) -> dict[str, str]:
    """By the names that variables have; a node without a name is called by its first output."""
    names: dict[str, str] = {}
    for node in model.graph.node:
        for output in filter(None, node.output):
            names.setdefault(variable_name(output), plain_line(node.name or output, _LONGEST_NAME))
    return names


def _declared_ranks(model: ModelProto) -> dict[str, int]:
    """The ranks that the file declares for its outputs."""
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in model.graph.output
        if value.type.tensor_type.HasField("shape")
    }


def _check_outputs(model: ModelProto, source: str) -> None:
    """Raise ModelError for an output whose elements have no address of their own."""
    for value in model.graph.output:
        element = value.type.tensor_type.elem_type
        name = TensorProto.DataType.Name(element).lower() if element in _DTYPE_NUMBERS else ""
        if name.startswith(("int2", "int4", "uint2", "uint4", "float4", "float8")):
            raise ModelError(
                f"{source}: output {value.name!r} has the dtype {name}, which cannot be returned"
            )


__all__ = ["BoundInput", "ImportedModel", "import_onnx"]
