"""`bf16`, `fp16`: products in a shorter float, everything else in float32."""

from __future__ import annotations

import tvm

from tinsmith.compiler.errors import ConfigError, ModelError
from tinsmith.compiler.pipeline import Step
from tinsmith.compiler.quantization.recipe import Prepared, Recipe, Task, known_layers
from tinsmith.compiler.quantization.report import LayerReport
from tinsmith.passes.graph.dataflow import Dataflow, stored_behind
from tinsmith.passes.quantize.precision_placement import PRODUCTS, place_precision
from tinsmith.passes.quantize.reduce_precision import ReducePrecision
from tinsmith.targets.number_formats import float_precisions

_PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}


class FloatRecipe(Recipe):
    """Rounds operands of products and what is stored between them; needs no calibration.

    On a target without bfloat16 instructions everything stays in float32, and the report
    says so: widening bfloat16 before each product would be slower than float32.
    """

    def prepare(self, graph: tvm.IRModule, task: Task) -> Prepared:
        """Raises ConfigError for a precision without kernels and for unknown names of layers,
        ModelError if nothing can use the precision.
        """
        precision = _PRECISIONS[task.config.format]
        possible = float_precisions(task.spec)
        if precision == "float16" and precision not in possible:
            raise ConfigError(
                f"--quantize {task.config.format}: {task.spec.name} computes in "
                f"{' and '.join(possible)}, not in {precision}"
            )
        keep_float = known_layers(graph, task.config.keep_float, PRODUCTS)
        placement = place_precision(graph, keep_float=keep_float)
        if not placement.operators:
            raise ModelError(
                "nothing to quantise: the model has no convolution or matrix product with "
                "constant weights; compile it without --quantize"
            )
        known = Dataflow(graph)
        reason = "" if precision in possible else f"{task.spec.name} has no {precision} products"
        layers = []
        for name in placement.operators:
            node = known.named(name)
            if node is None:
                continue
            if reason:
                layers.append(LayerReport(name, str(node.operator), "float", reason))
                continue
            tensor = stored_behind(node, placement.stored).name
            layers.append(
                LayerReport(
                    name,
                    str(node.operator),
                    precision,
                    tensor=tensor,
                    weight_bits=16,
                    activation_bits=16,
                )
            )
        layers += [
            LayerReport(kept.name, kept.operator, "float", kept.reason)
            for kept in placement.float_operators
        ]
        step = ReducePrecision(precision, keep_float=keep_float)
        steps = () if reason else (Step("reduce_precision", step),)
        return Prepared(steps, graph, (), tuple(layers))
