"""Tables of halves: looked up in 16 bits; factors kept away from weights that are halves."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from graph_checks import assert_becomes, assert_left_alone, operators, with_weights
from tvm import relax
from tvm.script import ir as I  # noqa: N812
from tvm.script import relax as R  # noqa: N812

from passes.graph import FoldBatchNorm, StoreHalves

_RANDOM = np.random.default_rng(0)


def _halves(*shape: int, dtype: type = np.float16) -> np.ndarray:
    values = _RANDOM.standard_normal(shape)
    values.reshape(-1)[0] = 2.0**-40 if dtype is ml_dtypes.bfloat16 else 0.5
    return values.astype(dtype).astype(np.float32)


@I.ir_module
class Lookup:
    @R.function
    def main(i: R.Tensor((1, 9), "int64"), t: R.Tensor((50, 40), "float32")) -> R.Tensor(
        (1, 9, 40), "float32"
    ):
        with R.dataflow():
            y = R.take(t, i, axis=0)
            R.output(y)
        return y


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_tables_are_stored_in_16_bits(dtype: type) -> None:
    table = _halves(50, 40, dtype=dtype)
    name = np.dtype(dtype).name
    builder = relax.BlockBuilder()
    indices = relax.Var("i", relax.TensorType([1, 9], "int64"))
    with builder.function("main", [indices]):
        with builder.dataflow():
            stored = relax.const(table.astype(dtype), name)
            found = builder.emit(relax.op.take(stored, indices, axis=0))
            output = builder.emit_output(relax.op.astype(found, "float32"))
        builder.emit_func_output(output)
    assert_becomes(StoreHalves(), with_weights(Lookup, t=table), builder.get())


def test_other_tables_are_left_alone() -> None:
    table = _halves(50, 40)
    table[3, 4] = 0.1
    assert_left_alone(StoreHalves(), with_weights(Lookup, t=table))
    assert_left_alone(StoreHalves(), Lookup)


@I.ir_module
class Scaled:
    @R.function
    def main(
        x: R.Tensor((2, 40), "float32"),
        w: R.Tensor((40, 50), "float32"),
        s: R.Tensor((50,), "float32"),
    ) -> R.Tensor((2, 50), "float32"):
        with R.dataflow():
            p = R.matmul(x, w)
            y = R.multiply(p, s)
            R.output(y)
        return y


def test_factors_are_not_folded_into_halves() -> None:
    scale = _RANDOM.uniform(0.5, 2.0, 50).astype(np.float32)
    assert_left_alone(FoldBatchNorm(), with_weights(Scaled, w=_halves(40, 50), s=scale))
    ordinary = _RANDOM.standard_normal((40, 50)).astype(np.float32)
    folded = FoldBatchNorm()(with_weights(Scaled, w=ordinary, s=scale))
    assert operators(folded) == ["matmul"]
