"""Outlier channels of normalised activations moved into the weights that read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tinsmith.passes.graph.conditions import PRODUCTS_OF_NUMBERS
from tinsmith.passes.graph.dataflow import Dataflow, Node
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import constant, constant_array, integers, static_shape


@tvm.transform.module_pass(opt_level=0, name="SmoothQuant")
class SmoothQuant:
    """Divide the channels of a layer normalisation by s, and multiply the weights behind by it.

    Before::

        a: (64, 384) = layer_norm(x, const gamma: (384,), const beta: (384,), axes=[-1])
        q = matmul(a, const wq: (384, 384))
        k = matmul(a, const wk: (384, 384))

    After, for a positive s: (384,)::

        a = layer_norm(x, const gamma / s, const beta / s, axes=[-1])
        q = matmul(a, const s * wq)        # s along the rows
        k = matmul(a, const s * wk)

    The graph computes the same. `channel_ranges` maps names of tensors (that of `a`,
    as `smoothable_tensors` lists them) to the largest magnitude r of each channel on
    calibration data; s = r^strength / m^(1 - strength), with m the largest magnitude
    of each row of all the weights. Source: Xiao et al. 2023, "SmoothQuant: Accurate
    and Efficient Post-Training Quantization for Large Language Models", equation 4
    (arXiv:2211.10438).

    Left alone: normalisations over several axes, without a scale, or read by anything
    else than products with constant matrices (and reshapes on the way to them);
    tensors that have no ranges.
    """

    requires = (PRODUCTS_OF_NUMBERS,)

    def __init__(self, channel_ranges: Mapping[str, np.ndarray], strength: float = 0.5) -> None:
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be between 0 and 1, not {strength}")
        self.channel_ranges = dict(channel_ranges)
        self.strength = strength

    def transform_module(
        self, module: tvm.IRModule, context: tvm.transform.PassContext
    ) -> tvm.IRModule:
        scales: dict[relax.Var, np.ndarray] = {}
        readers: dict[relax.Var, np.ndarray] = {}
        for norm in _smoothable(Dataflow(module)):
            if norm.name not in self.channel_ranges:
                continue
            chosen = self._scales(norm, np.asarray(self.channel_ranges[norm.name], np.float64))
            scales[norm.variable] = chosen
            readers.update({reader.variable: chosen for reader in _products(norm) or ()})
        return _Smoother(module, scales, readers).run()

    def _scales(self, norm: Node, ranges: np.ndarray) -> np.ndarray:
        """s of one normalisation, geometric mean 1; dead channels are left as they are."""
        products = _products(norm) or []
        rows = np.max([np.abs(_matrix(reader)).max(1) for reader in products], axis=0)
        if ranges.shape != rows.shape:
            raise ValueError(
                f"tensor {norm.name} has {rows.size} channels, its ranges have {ranges.size}"
            )
        alive = (ranges > 0) & (rows > 0)
        scales = np.ones_like(ranges)
        scales[alive] = ranges[alive] ** self.strength / rows[alive] ** (1 - self.strength)
        if alive.any():
            scales[alive] /= np.exp(np.log(scales[alive]).mean())
        return scales


def smoothable_tensors(module: tvm.IRModule) -> tuple[str, ...]:
    """Names of the tensors whose channels `SmoothQuant` can scale, in order."""
    return tuple(node.name for node in _smoothable(Dataflow(module)))


def _matrix(reader: Node) -> np.ndarray:
    call: Any = reader.value
    return np.asarray(constant_array(call.args[1]), np.float64)


def _smoothable(graph: Dataflow) -> list[Node]:
    found = []
    for node in graph.nodes:
        if node.operator != "relax.nn.layer_norm" or node.escapes or not node.readers:
            continue
        call: Any = node.value
        rank = len(static_shape(node.variable) or ())
        axes = [axis % rank for axis in integers(call.attrs.axes)] if rank else []
        parameters = [constant_array(argument) for argument in call.args[1:3]]
        usable = axes == [rank - 1] and bool(call.attrs.scale)
        usable = usable and all(p is not None for p in parameters)
        if usable and _products(node):
            found.append(node)
    return found


def _products(source: Node) -> list[Node] | None:
    """The products with constant matrices that read `source`; None if anything else does.

    Reshapes that keep the last axis may stand between.
    """
    found: list[Node] = []
    if source.escapes:
        return None
    for reader in source.readers:
        call: Any = reader.value
        if reader.operator == "relax.reshape":
            before, after = static_shape(source.variable), static_shape(reader.variable)
            behind = _products(reader) if before and after and before[-1] == after[-1] else None
            if behind is None:
                return None
            found += behind
            continue
        matrix = constant_array(call.args[1]) if reader.operator == "relax.matmul" else None
        if matrix is None or matrix.ndim != 2 or matrix.dtype != np.float32:
            return None
        found.append(reader)
    return found


class _Smoother(BlockRewriter):
    def __init__(
        self,
        module: tvm.IRModule,
        norms: Mapping[relax.Var, np.ndarray],
        readers: Mapping[relax.Var, np.ndarray],
    ) -> None:
        super().__init__(module)
        self._norms = norms
        self._readers = readers

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        call: Any = value
        if variable in self._norms:
            scaled = [self._scaled(a, 1 / self._norms[variable]) for a in call.args[1:3]]
            return relax.Call(call.op, [call.args[0], *scaled], call.attrs, call.ty_args)
        if variable in self._readers:
            matrix = self._scaled(call.args[1], self._readers[variable][:, None])
            return relax.Call(call.op, [call.args[0], matrix], call.attrs, call.ty_args)
        return value

    @staticmethod
    def _scaled(expr: relax.Expr, factor: np.ndarray) -> relax.Expr:
        return constant((np.asarray(constant_array(expr)) * factor).astype(np.float32))
