"""A model as the compiler takes it up, whatever file it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

from tinsmith.compiler.dimensions.open_batch import OpenAxes
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.evaluate.inputs import Domains
from tinsmith.compiler.evaluate.reference import ReferenceMaker


@dataclass(frozen=True)
class ImportedModel:
    """A graph, and what its inputs and outputs are.

    `module` holds one Relax function `main`: its parameters are the model's inputs in the order
    of `input_names`, weights are constants, the body is one dataflow block, and it returns a
    tensor for one output and a tuple for several. Shapes are fixed; a dimension of an output is
    None where it depends on data. `domains` says what inputs may be. `reference` gives somebody
    else's implementation of the model with the same bindings; None if nobody else can run it.
    `node_names` are what the model calls the nodes behind variables, by the latter's names (see
    `tinsmith.compiler.frontends.origins`). `notes` tells what was decided on the way. `open_axes`
    is the dimension of inputs that has no fixed size: all shapes are those at its bound.
    """

    module: tvm.IRModule
    source: str
    input_names: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    input_dtypes: tuple[str, ...]
    output_names: tuple[str, ...]
    output_shapes: tuple[tuple[int | None, ...], ...]
    output_dtypes: tuple[str, ...]
    domains: Domains
    notes: tuple[str, ...]
    reference: ReferenceMaker | None
    node_names: Mapping[str, str]
    open_axes: OpenAxes | None = None

    @property
    def signature(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each input by name."""
        described = zip(self.input_shapes, self.input_dtypes, strict=True)
        return dict(zip(self.input_names, described, strict=True))

    @property
    def required_reference(self) -> ReferenceMaker:
        """`reference`; raises ModelError if there is none."""
        if self.reference is None:
            raise ModelError(f"{self.source}: no other runtime can run it")
        return self.reference


def described_outputs(
    module: tvm.IRModule, source: str
) -> list[tuple[tuple[int | None, ...], str]]:
    """Shape and dtype of each output of `main`."""
    outputs = []
    for index, field in enumerate(result_types(module["main"])):
        if not isinstance(field, relax.TensorType) or field.ndim < 0:
            raise ModelError(
                f"{source}: output {index} has a number of dimensions that depends on data, or is "
                "a sequence; declare its shape in the model, or cut the model before it"
            )
        shape = field.shape
        if isinstance(shape, relax.ShapeExpr):
            sizes = tuple(getattr(dim, "value", None) for dim in shape.values)
        else:
            sizes = (None,) * field.ndim
        outputs.append((sizes, str(field.dtype)))
    return outputs


def result_types(main: relax.Function) -> list[Any]:
    """The types of the results, with the extents that are known where others depend on data."""
    body = main.body
    kind = body.body.ty if isinstance(body, relax.SeqExpr) else main.ret_ty
    return list(kind.fields) if isinstance(kind, relax.TupleType) else [kind]
