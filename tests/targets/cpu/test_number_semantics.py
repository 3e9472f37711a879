"""NaN in maxima and minima, sums of products that round once, and which kernels they make alike."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from test_elementary_functions import LANES, compiled
from tvm import relax, te, tirx, topi

from tinsmith.passes.quantize.numbers import fused_multiply_add
from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.fused_sums import fuse_products
from tinsmith.targets.cpu.nan_propagation import beginning, propagate_nan
from tinsmith.targets.cpu.reproducible import is_reproducible
from tinsmith.targets.x86.specs import X86_64_V3

SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -7.0, 1e-40]


def kernel(function, count, dtype, lanes=LANES, prepare=propagate_nan):
    """`z[i] = function(a[i], b[i], ...)` for `count` operands of 64 elements, compiled."""
    buffers = [tirx.decl_buffer((64,), dtype, f"x{i}") for i in range(count + 1)]

    def block(i):
        def lane(v):
            where = i * loops.index(lanes) + v
            values = [loops.load(buffer, where) for buffer in buffers[:-1]]
            return loops.store(buffers[-1], [where], function(*values))

        return loops.vectorized("lane", lanes, lane) if lanes > 1 else lane(loops.index(0))

    body = loops.serial("block", 64 // lanes, block)
    made = tirx.PrimFunc(buffers, body).with_attr({"global_symbol": "main", "tirx.noalias": True})
    executable = compiled(prepare(made))

    def run(*arrays):
        result = tvm.runtime.tensor(np.zeros(64, dtype))
        executable["main"](*map(tvm.runtime.tensor, arrays), result)
        return result.numpy()

    return run


@pytest.mark.parametrize(("dtype", "lanes"), [("float32", 8), ("float32", 1), ("float64", 4)])
def test_a_maximum_is_nan_where_an_operand_is(dtype, lanes):
    def both(a, b):
        six = tirx.const(6.0, dtype)
        return tirx.max(a, b) + tirx.min(tirx.max(a, tirx.const(-1.0, dtype)), six)

    a, b = (x.astype(dtype).reshape(-1) for x in np.meshgrid(SPECIAL, SPECIAL))
    with np.errstate(invalid="ignore"):
        expected = np.maximum(a, b) + np.minimum(np.maximum(a, -1), 6)
    np.testing.assert_array_equal(kernel(both, 2, dtype, lanes)(a, b), expected.astype(dtype))


def test_deep_trees_of_maxima_stay_small():
    """Each operand is computed once: a tree of 40 would not end otherwise."""

    def deepest(a, b):
        for i in range(40):
            a = tirx.max(a, b + tirx.const(float(i), "float32"))
        return a

    a, b = np.zeros(64, np.float32), np.full(64, 2, np.float32)
    assert (kernel(deepest, 2, "float32")(a, b) == 41).all()


def test_what_is_rounded_to_codes_keeps_its_bounds():
    x = tirx.Var("x", "float32")
    bounded = tirx.max(tirx.min(x, tirx.const(255.0, "float32")), tirx.const(0.0, "float32"))
    bits = tirx.reinterpret("int32", bounded + tirx.const(12582912.0, "float32"))
    out = tirx.decl_buffer((1,), "uint8", "out")
    body = tirx.BufferStore(out, (bits - 0x4B400000).astype("uint8"), [0])
    function = tirx.PrimFunc([x, out], body)
    assert "tinsmith" not in propagate_nan(function).script()


def test_maxima_begin_at_minus_infinity():
    for dtype in ("float16", "float32", "float64"):
        assert float(beginning(tirx.min_value(dtype)).value) == -np.inf
        assert float(beginning(tirx.max_value(dtype)).value) == np.inf
    assert int(beginning(tirx.min_value("int8")).value) == -128


def test_of_two_products_the_right_one_is_fused():
    generator = np.random.default_rng(0)
    a, b, c, d = (generator.standard_normal(64).astype(np.float32) for _ in range(4))
    fuse = lambda function: fuse_products(function, X86_64_V3)  # noqa: E731
    forms = {
        "sum": (lambda a, b, c, d: a * b + c * d, fused_multiply_add(c, d, a * b)),
        "left": (lambda a, b, c, d: a * b + c, fused_multiply_add(a, b, c)),
        "less": (lambda a, b, c, d: c - a * b, fused_multiply_add(-a, b, c)),
        "from": (lambda a, b, c, d: a * b - c, fused_multiply_add(a, b, -c)),
    }
    for name, (function, expected) in forms.items():
        found = kernel(function, 4, "float32", prepare=fuse)(a, b, c, d)
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_a_sum_of_integers_is_reproducible_and_one_of_floats_is_not():
    def kernels(build, dtype):
        builder = relax.BlockBuilder()
        x = relax.Var("x", relax.TensorType((4, 8), dtype))
        with builder.function("main", [x]):
            with builder.dataflow():
                out = builder.emit_output(builder.call_te(build, x))
            builder.emit_func_output(out)
        return [f for f in builder.get().functions.values() if isinstance(f, tirx.PrimFunc)]

    def summed(x: te.Tensor) -> te.Tensor:
        return topi.sum(x, 1)

    assert all(map(is_reproducible, kernels(summed, "int32")))
    assert not any(map(is_reproducible, kernels(summed, "float32")))
    assert all(map(is_reproducible, kernels(lambda x: topi.max(x, 1), "float32")))
    assert all(map(is_reproducible, kernels(lambda x: topi.exp(topi.sqrt(x)) + x, "float32")))
    # From the target's own library of functions.
    assert not any(map(is_reproducible, kernels(topi.atan, "float32")))
