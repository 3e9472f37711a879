"""`int8-weights`, `int4-weights`, ...: weights stored in few bits, all products in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tvm

from tinsmith.compiler.calibration import ObservedModule
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.pipeline import Step
from tinsmith.compiler.quantization.noise import SignalToNoise
from tinsmith.compiler.quantization.recipe import Prepared, Recipe, Task, known_layers
from tinsmith.compiler.quantization.report import LayerReport
from tinsmith.passes.graph.dataflow import Dataflow, stored_behind
from tinsmith.passes.graph.tensors import integers
from tinsmith.passes.quantize.adaptive_rounding import GramObserver
from tinsmith.passes.quantize.compress_weights import CompressWeights, Product, products
from tinsmith.passes.quantize.fusion_preview import kept_in_memory
from tinsmith.passes.quantize.precision_placement import PRODUCTS
from tinsmith.passes.quantize.weight_compression import Method, compress
from tinsmith.targets.compressed_weights import CompressedWeights

# Statistics of so many bytes are gathered in one pass over the samples, or of one layer.
_GRAM_BYTES = 512 * 2**20


class WeightRecipe(Recipe):
    """Compresses the constant weights of convolutions and matrix products.

    With data, codes of 4 bits are rounded so that the products of these data change least.
    """

    def prepare(self, graph: tvm.IRModule, task: Task) -> Prepared:
        """Raises ModelError if no weights can be compressed, ConfigError for unknown names of
        layers, and what calibration raises.
        """
        config = task.config
        keep_float = known_layers(graph, config.keep_float, PRODUCTS)
        found = products(graph, keep_float, config.min_weights)
        chosen = [product for product in found if not product.reason]
        if not chosen:
            raise ModelError(
                "nothing to quantise: the model has no convolution or matrix product with "
                f"{config.min_weights} constant weights or more; compile it without --quantize"
            )
        method = Method(config.format.removesuffix("-weights"))
        stored: dict[str, CompressedWeights] = {}
        fits_data = method.bits == 4 and config.has_data
        for batch in gram_batches(chosen) if fits_data else [chosen]:
            grams = layer_grams(graph, batch, task) if fits_data else {}
            for product in batch:
                if task.progress is not None:
                    task.progress(f"compress {product.name}", len(stored) / len(chosen))
                gram = grams.pop(product.name, None)
                stored[product.name] = compress(product.weights, method, config.group_size, gram)
        layers = _layers(graph, found, stored)
        step = Step("compress_weights", CompressWeights(stored))
        return Prepared((step,), graph, (), layers)


def gram_batches(chosen: Sequence[Product]) -> Iterator[list[Product]]:
    """Products whose statistics fit into memory together."""
    batch: list[Product] = []
    used = 0
    for product in chosen:
        size = 8 * (product.weights.size // product.weights.shape[-1]) ** 2
        if batch and used + size > _GRAM_BYTES:
            yield batch
            batch, used = [], 0
        batch.append(product)
        used += size
    yield batch


def layer_grams(graph: tvm.IRModule, batch: Sequence[Product], task: Task) -> dict[str, np.ndarray]:
    """The sum of x x^T over the samples, by product; grouped convolutions have none."""
    observers = {p.name: _observer(p.call) for p in batch if not is_grouped(p.call)}
    watched = [p for p in batch if p.name in observers]
    if not watched:
        return {}
    count = task.source.count
    with ObservedModule(graph, task.workshop, [p.data for p in watched]) as observed:
        for index, sample in enumerate(task.source):
            if task.progress is not None:
                task.progress(f"statistics {index + 1}", index / count if count else 0.0)
            tensors = observed.run(list(sample.values())).tensors
            for product in watched:
                array = tensors[product.data]
                if _is_channels_first(product.call):
                    array = array.transpose(0, 2, 3, 1)
                observers[product.name].update(array)
    return {name: observer.gram for name, observer in observers.items()}


def _observer(call: Any) -> GramObserver:
    if not hasattr(call.attrs, "kernel_layout"):
        return GramObserver()
    kernel = [int(extent) for extent in call.args[1].ty.shape.values[:2]]
    attrs = call.attrs
    return GramObserver(
        kernel, integers(attrs.strides), integers(attrs.padding), integers(attrs.dilation)
    )


def is_grouped(call: Any) -> bool:
    return hasattr(call.attrs, "kernel_layout") and int(call.attrs.groups) > 1


def _is_channels_first(call: Any) -> bool:
    return hasattr(call.attrs, "kernel_layout") and str(call.attrs.data_layout) == "NCHW"


def _layers(
    graph: tvm.IRModule, found: Sequence[Product], stored: dict[str, CompressedWeights]
) -> tuple[LayerReport, ...]:
    known = Dataflow(graph)
    in_memory = {node.name for node in kept_in_memory(known)}
    layers = []
    for product in found:
        weights = stored.get(product.name)
        node = known.named(product.name)
        if weights is None or node is None:
            layers.append(LayerReport(product.name, product.operator, "float", product.reason))
            continue
        noise = SignalToNoise()
        noise.update(product.weights, weights.dequantize())
        layers.append(
            LayerReport(
                product.name,
                product.operator,
                "float",
                tensor=stored_behind(node, in_memory).name,
                weight_bits=weights.bits,
                group=int(np.bincount(weights.grouping.indices()).max()),
                weight_sqnr_db=noise.decibels,
                float_weight_bytes=product.weights.nbytes,
                weight_bytes=weights.stored_bytes,
            )
        )
    return tuple(layers)
