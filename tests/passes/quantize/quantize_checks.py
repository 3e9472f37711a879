"""Small float graphs to quantise, and the same arithmetic in plain numpy."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.quantize.insert_quantization import InsertQuantization, QuantizationOptions
from tinsmith.passes.quantize.lower_integers import LowerIntegers
from tinsmith.passes.quantize.numbers import (
    NARROW_INT8,
    UINT8,
    affine_parameters,
    symmetric_parameters,
)
from tinsmith.passes.quantize.numbers import dequantize as decode
from tinsmith.passes.quantize.numbers import quantize as encode
from tinsmith.passes.quantize.placement import observed_tensors
from tinsmith.passes.quantize.simplify_quantization import SimplifyQuantization
from tinsmith.passes.quantize.store_integers import StoreIntegers
from tinsmith.targets.x86.backend import FORMATS as X86

_RANDOM = np.random.default_rng(3)


def array(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype(np.float32)


class Graph:
    """Builds `main` of one float input in NHWC, binding by binding, with names."""

    def __init__(self, *shape: int) -> None:
        self.input = relax.Var("x", relax.TensorType(shape, "float32"))
        self._bindings: list[relax.Binding] = []
        self._builder = relax.BlockBuilder()
        self.residual: relax.Var | None = None

    def bind(self, name: str, value: relax.Expr) -> relax.Var:
        value = self._builder.normalize(value)
        variable = relax.DataflowVar(name, value.ty)
        self._bindings.append(relax.VarBinding(variable, value))
        return variable

    def conv(self, name: str, x: relax.Expr, w: np.ndarray, padding: int = 0, **more) -> relax.Var:
        call = relax.op.nn.conv2d(
            x, relax.const(w), padding=padding, data_layout="NHWC", kernel_layout="HWIO", **more
        )
        return self.bind(name, call)

    def module(self, result: relax.Var) -> tvm.IRModule:
        out = relax.Var("out", result.ty)
        last = self._bindings[-1]
        assert last.var.same_as(result)
        bindings = [*self._bindings[:-1], relax.VarBinding(out, last.value)]
        body = relax.SeqExpr([relax.DataflowBlock(bindings)], out)
        function = relax.Function([self.input], body, out.ty)
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        return relax.transform.Normalize()(module)


def two_convolutions() -> tuple[tvm.IRModule, np.ndarray, np.ndarray, np.ndarray]:
    """x (1, 6, 6, 3) -> conv 3x3 -> + bias -> relu `hidden` -> conv 1x1 -> out (1, 6, 6, 5)."""
    first, bias, second = array(3, 3, 3, 8), array(1, 1, 1, 8), array(1, 1, 8, 5)
    graph = Graph(1, 6, 6, 3)
    a = graph.conv("a", graph.input, first, padding=1)
    b = graph.bind("b", relax.op.add(a, relax.const(bias)))
    hidden = graph.bind("hidden", relax.op.nn.relu(b))
    return graph.module(graph.conv("c", hidden, second)), first, bias, second


def attention() -> tvm.IRModule:
    """x (6, 8) -> two heads of softmax(q k^T) v, of 8 channels each: out (2, 6, 8)."""
    graph = Graph(6, 8)
    q = graph.bind("q", relax.op.matmul(graph.input, relax.const(array(8, 16))))
    k = graph.bind("k", relax.op.matmul(graph.input, relax.const(array(8, 16))))
    heads_k = graph.bind("heads_k", relax.op.reshape(k, (6, 2, 8)))
    turned_k = graph.bind("turned_k", relax.op.permute_dims(heads_k, [1, 2, 0]))
    heads_q = graph.bind("heads_q", relax.op.reshape(q, (6, 2, 8)))
    turned_q = graph.bind("turned_q", relax.op.permute_dims(heads_q, [1, 0, 2]))
    scores = graph.bind("scores", relax.op.matmul(turned_q, turned_k))
    scaled = graph.bind("scaled", relax.op.multiply(scores, relax.const(np.float32(0.1))))
    weights = graph.bind("weights", relax.op.nn.softmax(scaled))
    v = graph.bind("v", relax.op.matmul(graph.input, relax.const(array(8, 8))))
    return graph.module(graph.bind("out", relax.op.matmul(weights, v)))


def ranges_of(module: tvm.IRModule, low: float = -3.0, high: float = 5.0) -> dict:
    return dict.fromkeys(observed_tensors(module, X86), (low, high))


def quantized(module: tvm.IRModule, ranges: dict, options: QuantizationOptions | None = None):
    """The graph with the float operators between `quantize` and `dequantize`."""
    return InsertQuantization(ranges, X86, options)(module)


def lowered(module: tvm.IRModule) -> tvm.IRModule:
    for step in (SimplifyQuantization(X86), LowerIntegers(X86), StoreIntegers()):
        module = step(module)
    relax.analysis.well_formed(module)
    return module


def rounded(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """`x` as far as uint8 in that range can hold it."""
    scale, zero_point = affine_parameters(low, high, UINT8)
    return decode(encode(x, scale, zero_point, UINT8), scale, zero_point)


def rounded_weights(w: np.ndarray) -> np.ndarray:
    """`w` as far as int8 with a scale per output channel can hold it."""
    axes = tuple(range(w.ndim - 1))
    scale = symmetric_parameters(w.min(axes), w.max(axes), NARROW_INT8)
    last = w.ndim - 1
    return decode(encode(w, scale, 0, NARROW_INT8, last), scale, 0, last)


def convolve(x: np.ndarray, w: np.ndarray, padding: int = 0) -> np.ndarray:
    """NHWC with HWIO weights, stride 1, in float64."""
    x = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = x.shape[1] - w.shape[0] + 1, x.shape[2] - w.shape[1] + 1
    return sum(
        np.einsum("nhwi,io->nhwo", x[:, i : i + rows, j : j + columns], w[i, j])
        for i in range(w.shape[0])
        for j in range(w.shape[1])
    )


def dtypes(module: tvm.IRModule) -> dict[str, str]:
    """The dtype of every convolution and product, by the name of its variable."""
    found = {}
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, relax.Call) and call.op.name in (
                "relax.nn.conv2d",
                "relax.matmul",
                "relax.nn.max_pool2d",
                "relax.concat",
                "relax.sum",
            ):
                found[call.op.name.rpartition(".")[2] + str(len(found))] = str(call.ty.dtype)
    return found
