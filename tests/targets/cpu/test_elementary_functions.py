"""Accuracy of the lowered elementary functions against float64, over their whole ranges."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tvm
import tvm_ffi
from scipy import special
from tvm import tirx
from tvm.ir import Expr

from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.elementary_functions import lower_elementary_functions
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.x86.specs import X86_64_V3

Array = npt.NDArray[Any]
LANES = 8


def vectorised(size: int, function: Callable[[Expr], Expr]) -> tirx.PrimFunc:
    """`y[i] = function(x[i])` in a vectorised loop."""
    x = tirx.decl_buffer((size,), "float32", "x")
    y = tirx.decl_buffer((size,), "float32", "y")

    def block(i: Expr) -> tirx.Stmt:
        def lane(v: Expr) -> tirx.Stmt:
            where = i * loops.index(LANES) + v
            return loops.store(y, [where], function(loops.load(x, where)))

        return loops.vectorized("lane", LANES, lane)

    body = loops.serial("block", size // LANES, block)
    return tirx.PrimFunc([x, y], body).with_attr({"global_symbol": "main", "tirx.noalias": True})


def compiled(function: tirx.PrimFunc, spec: TargetSpec = X86_64_V3) -> Any:
    target = tvm.target.Target(spec.tvm_target_config())
    # As the module builder does: buffers stay where they are, the small ones on the stack.
    with tvm.transform.PassContext(config={"tirx.disable_storage_rewrite": True}):
        return tvm.compile(function, target=target)


def evaluate(function: Callable[[Expr], Expr], values: Array) -> Array:
    size = -(-len(values) // LANES) * LANES
    padded = np.ones(size, np.float32)
    padded[: len(values)] = values
    executable = compiled(lower_elementary_functions(vectorised(size, function)))
    result = tvm.runtime.tensor(np.zeros(size, np.float32))
    executable["main"](tvm.runtime.tensor(padded), result)
    return result.numpy()[: len(values)]


def wide(low: float, high: float, count: int = 400_003) -> Array:
    return np.linspace(low, high, count).astype(np.float32)


def magnitudes(low: float, high: float, count: int = 200_000) -> Array:
    return np.logspace(low, high, count).astype(np.float32)


def both_signs(values: Array) -> Array:
    return np.concatenate([values, -values])


def ulps(result: Array, exact: Array) -> float:
    """Greatest error in units of the last place of the exact value."""
    spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(result.astype(np.float64) - exact) / spacing))


def relative(result: Array, exact: Array) -> float:
    return float(np.max(np.abs(result.astype(np.float64) / exact - 1)))


POSITIVE = np.concatenate([magnitudes(-37.9, 38.5), wide(0.4, 2.5)])
SMALL_AND_WIDE = np.concatenate([both_signs(magnitudes(-30, 0)), wide(-12, 12)])

ULP_CASES = {
    "exp": (tirx.exp, np.exp, wide(-86.8, 88.7), 2),
    "exp2": (tirx.exp2, np.exp2, wide(-125.3, 127.9), 2),
    "cosh": (tirx.cosh, np.cosh, wide(-87.0, 87.0), 4),
    "sinh": (tirx.sinh, np.sinh, wide(-87.0, 87.0), 4),
    "exp10": (tirx.exp10, lambda x: 10.0**x, wide(-37.6, 38.5), 4),
    "log": (tirx.log, np.log, POSITIVE, 2),
    "log of denormals": (tirx.log, np.log, magnitudes(-44, -37.9), 2),
    "log2": (tirx.log2, np.log2, POSITIVE, 3),
    "log10": (tirx.log10, np.log10, POSITIVE, 3),
    "log1p": (tirx.log1p, np.log1p, np.concatenate([both_signs(magnitudes(-30, -0.001)),
                                                    magnitudes(0, 38)]), 4),
    "sigmoid": (tirx.sigmoid, special.expit, wide(-80, 90), 4),
}  # fmt: skip
RELATIVE_CASES = {
    "tanh": (tirx.tanh, np.tanh, SMALL_AND_WIDE[SMALL_AND_WIDE != 0], 4e-7),
    "erf": (tirx.erf, special.erf, SMALL_AND_WIDE[SMALL_AND_WIDE != 0], 5e-7),
    "cube": (lambda x: tirx.pow(x, tirx.const(3.0)), lambda x: x**3, magnitudes(-10, 10), 3e-7),
    "inverse 7th": (
        lambda x: tirx.pow(x, tirx.const(-7.0)), lambda x: x**-7.0, magnitudes(-4, 4), 6e-7,
    ),
    "root": (lambda x: tirx.pow(x, tirx.const(0.5)), np.sqrt, magnitudes(-30, 30), 2e-7),
    "gamma": (lambda x: tirx.pow(x, tirx.const(2.2)), lambda x: x**2.2, magnitudes(-4, 1), 3e-6),
}  # fmt: skip


@pytest.mark.parametrize("name", ULP_CASES)
def test_error_in_ulps(name: str) -> None:
    function, exact, values, limit = ULP_CASES[name]
    result = evaluate(function, values)
    assert ulps(result, exact(values.astype(np.float64))) <= limit


@pytest.mark.parametrize("name", RELATIVE_CASES)
def test_relative_error(name: str) -> None:
    function, exact, values, limit = RELATIVE_CASES[name]
    result = evaluate(function, values)
    assert relative(result, exact(values.astype(np.float64))) <= limit


@pytest.mark.parametrize(("function", "exact"), [(tirx.sin, np.sin), (tirx.cos, np.cos)])
def test_sine_and_cosine(function: Any, exact: Any) -> None:
    values = np.concatenate([wide(-20, 20), both_signs(magnitudes(-20, 6))])
    assert np.max(np.abs(evaluate(function, values) - exact(values.astype(np.float64)))) < 1.5e-7


SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-45, 3e38, -3e38],
                   np.float32)  # fmt: skip


@pytest.mark.parametrize(
    ("function", "exact"),
    [
        (tirx.exp, np.exp),
        (tirx.exp2, np.exp2),
        (tirx.log, np.log),
        (tirx.log2, np.log2),
        (tirx.log1p, np.log1p),
        (tirx.tanh, np.tanh),
        (tirx.erf, special.erf),
        (tirx.sigmoid, special.expit),
        (tirx.sin, np.sin),
    ],
)
def test_zeros_infinities_and_nan(function: Any, exact: Any) -> None:
    values = SPECIAL if function is not tirx.sin else SPECIAL[:8]
    with np.errstate(all="ignore"):
        expected = exact(values.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(evaluate(function, values), expected, rtol=3e-7, atol=1e-37)


def test_exp_overflows_and_underflows() -> None:
    values = np.array([88.73, 100, 1e10, -88, -104, -1e10], np.float32)
    expected = np.array([math.inf, math.inf, math.inf, 0, 0, 0], np.float32)
    np.testing.assert_array_equal(evaluate(tirx.exp, values), expected)


def test_no_calls_are_left_and_vectors_are_used() -> None:
    function = lower_elementary_functions(vectorised(64, lambda x: tirx.exp(tirx.erf(x))))
    assert "T.exp(" not in function.script() and "T.erf(" not in function.script()
    assembly = compiled(function).mod.inspect_source("asm")
    kernel = assembly[assembly.index("main_compute_") :]
    assert "expf" not in kernel and "erff" not in kernel
    assert "ymm" in kernel


def test_explicit_vectors_are_lowered() -> None:
    x, y = (tirx.decl_buffer((8,), "float32", n) for n in "xy")
    value = tirx.tanh(tirx.BufferLoad(x, [loops.ramp(0, 8)]))
    body = tirx.BufferStore(y, value, [loops.ramp(0, 8)])
    function = tirx.PrimFunc([x, y], body).with_attr("global_symbol", "main")
    executable = compiled(lower_elementary_functions(function))
    values = np.linspace(-3, 3, 8).astype(np.float32)
    result = tvm.runtime.tensor(np.zeros(8, np.float32))
    executable["main"](tvm.runtime.tensor(values), result)
    np.testing.assert_allclose(result.numpy(), np.tanh(values), rtol=5e-7)


def test_a_guarded_read_stays_guarded() -> None:
    """Only the first half may be read: the input ends there."""
    x = tirx.decl_buffer((8,), "float32", "x")
    y = tirx.decl_buffer((16,), "float32", "y")

    def point(i: Expr) -> tirx.Stmt:
        inside = tirx.exp(loops.load(x, i))
        return loops.store(y, [i], tirx.if_then_else(i < 8, inside, tirx.const(-1.0, "float32")))

    function = tirx.PrimFunc([x, y], loops.serial("i", 16, point))
    lowered = lower_elementary_functions(function).script()
    stores = [line for line in lowered.splitlines() if "x[i]" in line]
    assert stores and all("if_then_else" in line for line in stores)


def test_other_dtypes_and_functions_are_left_alone() -> None:
    x, y = (tirx.decl_buffer((8,), "float64", n) for n in "xy")
    body = loops.serial("i", 8, lambda i: loops.store(y, [i], tirx.exp(loops.load(x, i))))
    function = tirx.PrimFunc([x, y], body)
    assert tvm_ffi.structural_equal(lower_elementary_functions(function), function)
    atan = vectorised(8, tirx.atan)
    assert "T.atan(" in lower_elementary_functions(atan).script()


def test_many_dependent_functions_compile_quickly() -> None:
    """TVM takes exponential time where such a chain is written with lets."""

    def chain(x: Expr) -> Expr:
        for function in (tirx.exp, tirx.log1p, tirx.tanh, tirx.erf, tirx.sigmoid) * 2:
            x = function(x)
        return x

    values = wide(-3, 3, 16)
    exact = values.astype(np.float64)
    for reference in (np.exp, np.log1p, np.tanh, special.erf, special.expit) * 2:
        exact = reference(exact)
    np.testing.assert_allclose(evaluate(chain, values), exact, rtol=1e-5)
