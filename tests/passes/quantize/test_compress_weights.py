"""Weights of a graph replaced by codes: what is replaced, what stays, what folding must not do."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from quantize_checks import Graph, array
from tvm import relax

from tinsmith.compiler.pipeline import QUANTIZED_BEFORE, Step, lowering
from tinsmith.passes.graph import FoldConstants
from tinsmith.passes.graph.tensors import operator_name
from tinsmith.passes.quantize.compress_weights import CompressWeights, products
from tinsmith.passes.quantize.weight_compression import Method, compress
from tinsmith.targets.compressed_weights import compressed_weights
from tinsmith.targets.x86.specs import X86_64_V3


def network() -> tvm.IRModule:
    """x (1, 6, 6, 8) -> `big` 3x3 to 24 -> `depthwise` 3x3 -> `small` 1x1 to 2 -> relu."""
    graph = Graph(1, 6, 6, 8)
    big = graph.conv("big", graph.input, array(3, 3, 8, 24), padding=1)
    depthwise = graph.conv("depthwise", big, array(3, 3, 1, 24), padding=1, groups=24)
    small = graph.conv("small", depthwise, array(1, 1, 24, 2))
    return graph.module(graph.bind("result", relax.op.nn.relu(small)))


def bindings(module: tvm.IRModule) -> list[tuple[str | None, relax.Call]]:
    (block,) = module["main"].body.blocks
    return [(operator_name(b.value), b.value) for b in block.bindings]


def weights_of(module: tvm.IRModule) -> dict[str, np.ndarray]:
    return {product.name: product.weights for product in products(module)}


def test_one_convolution_reads_codes() -> None:
    module = network()
    stored = compress(weights_of(module)["big"], Method.INT4, 64)
    after = CompressWeights({"big": stored})(module)
    names, calls = zip(*bindings(after), strict=True)
    assert names == (
        "relax.call_pure_packed",
        "relax.nn.conv2d",
        "relax.nn.conv2d",
        "relax.nn.conv2d",
        "relax.nn.relu",
    )
    carried = compressed_weights(calls[0])
    assert carried is not None
    np.testing.assert_array_equal(carried.codes, stored.codes)
    before = dict(zip(names[1:], calls[1:], strict=True))["relax.nn.relu"]
    tvm.ir.assert_structural_equal(before.ty, bindings(module)[-1][1].ty)
    # The attributes of the convolution are its own.
    tvm.ir.assert_structural_equal(calls[1].attrs, bindings(module)[0][1].attrs)


def test_nothing_to_do_changes_nothing() -> None:
    module = network()
    tvm.ir.assert_structural_equal(CompressWeights({})(module), module)


def test_folding_leaves_codes_alone() -> None:
    module = network()
    stored = {
        n: compress(w, Method.INT8, 64) for n, w in weights_of(module).items() if n != "depthwise"
    }
    after = CompressWeights(stored)(module)
    tvm.ir.assert_structural_equal(FoldConstants()(after), after)


def test_kernels_read_the_codes() -> None:
    module = network()
    stored = compress(weights_of(module)["big"], Method.KMEANS4, 64)
    step = Step("compress", CompressWeights({"big": stored}))
    pipeline = lowering(X86_64_V3).with_step(step, before=QUANTIZED_BEFORE)
    lowered = pipeline.run(module).module
    (kernel,) = (
        function
        for variable, function in lowered.functions_items()
        if variable.name_hint.endswith("convolution")
        and any(str(p.ty.dtype) == "uint8" for p in getattr(function, "params", ()))
    )
    shapes = {str(p.ty.dtype): [int(e) for e in p.ty.shape] for p in kernel.params[1:3]}
    assert shapes == {"uint8": [1, 3, 3, 3, 4, 8], "float16": [1, 3, 1, 1, 2, 8]}


def test_reasons_to_stay_float() -> None:
    reasons = {p.name: p.reason for p in products(network(), keep_float=("big",), smallest=100)}
    assert reasons == {
        "big": "kept in float on request",
        "depthwise": "a depthwise convolution has too few weights to matter",
        "small": "fewer than 100 weights",
    }


def test_an_unknown_name_is_refused() -> None:
    stored = compress(array(16, 16), Method.INT8, 16)
    with pytest.raises(ValueError, match="no product by constant weights is named big2"):
        CompressWeights({"big2": stored})(network())
