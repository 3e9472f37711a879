"""Float constants on grids of few bits become codes before they become kernels."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax

from tinsmith.compiler.evaluate.stages import run_stage
from tinsmith.passes.quantize.store_exact_codes import StoreExactCodes
from tinsmith.targets.registry import get_target

_RANDOM = np.random.default_rng(0)
_CODES = _RANDOM.integers(-127, 128, (96, 64)).astype("float32")
_COLUMNS = _RANDOM.uniform(1e-3, 1e-2, 64).astype("float32")
_ROWS = _RANDOM.uniform(1e-3, 1e-2, (96, 1)).astype("float32")


def _module(build, shape, dtype="float32") -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            output = builder.emit_output(build(x))
        builder.emit_func_output(output)
    return builder.get()


def _constants(module: tvm.IRModule) -> set[tuple[tuple[int, ...], str]]:
    found = set()

    def note(node) -> None:
        if isinstance(node, tvm.ir.GenericConst):
            found.add((tuple(node.value.shape), str(node.value.dtype)))

    relax.analysis.post_order_visit(module["main"], note)
    return found


def test_a_product_reads_codes() -> None:
    told = []
    module = _module(lambda x: relax.op.matmul(x, relax.const(_CODES * _COLUMNS)), (2, 96))
    stored = StoreExactCodes(lambda *figures: told.append(figures))(module)
    assert _constants(stored) == {((96, 64), "int8"), ((1, 64), "float32")}
    assert told == [(1, 96 * 64 * 4, 96 * 64 + 64 * 4)]
    again = StoreExactCodes()(stored)
    assert tvm_ffi.structural_equal(again, stored)


@pytest.mark.parametrize(
    ("table", "constants"),
    [
        (_CODES * _COLUMNS, {((96, 64), "int8"), ((64,), "float32")}),
        (_CODES * _ROWS, {((96, 64), "int8"), ((96, 1), "float32")}),
        ((_CODES + 40) * np.float32(0.01),
         {((96, 64), "int8"), ((64,), "float32")}),
        (_CODES.astype("float16").astype("float32") / 3.0, set()),
        (_RANDOM.standard_normal((96, 64)).astype("float16").astype("float32"),
         {((96, 64), "float16")}),
        ((_RANDOM.standard_normal((96, 64)) * 2.0**-40).astype(ml_dtypes.bfloat16)
         .astype("float32"), {((96, 64), "bfloat16")}),
    ],
    ids=["columns", "rows", "zero point", "floats", "halves", "bfloat16"],
)  # fmt: skip
def test_a_table_is_gathered_as_codes(table, constants) -> None:
    table = table.astype("float32")
    module = _module(
        lambda i: relax.op.take(relax.const(table), i, axis=0, mode="clip"), (5,), "int64"
    )
    stored = StoreExactCodes()(module)
    assert _constants(stored) == (constants or {((96, 64), "float32")})
    indices = np.array([0, 95, 7, 7, 3])
    (result,) = run_stage(stored, [indices], get_target("native"))
    np.testing.assert_array_equal(result, table[indices])


def test_what_is_small_or_no_constant_is_left_alone() -> None:
    small = (_CODES * _COLUMNS)[:32]
    module = _module(lambda x: relax.op.matmul(x, relax.const(small)), (2, 32))
    assert tvm_ffi.structural_equal(StoreExactCodes()(module), module)
    module = _module(lambda x: relax.op.matmul(x, x), (80, 80))
    assert tvm_ffi.structural_equal(StoreExactCodes()(module), module)
