"""Elementary functions as branch-free float32 arithmetic.

LLVM turns `exp` over a vector into one call of libm per lane. The expressions
here use additions, multiplications, comparisons and integer shifts only, so that
a vectorised loop stays a vector loop on every instruction set (no FMA, rounding
or scatter instruction is required). Measured against float64 over all of the
functions' ranges (tests/targets/cpu/test_elementary_functions.py):

| function | method | greatest error |
|---|---|---|
| exp, exp2, exp10 | 2^n times a polynomial (Cephes `expf` coefficients) | 2 ulp, 10: 4 ulp |
| log, log2, log10 | exponent plus a polynomial on [sqrt(1/2), sqrt(2)] (Cephes `logf`) | 2 ulp |
| log1p | log(1 + x) corrected for the rounding of 1 + x | 4 ulp |
| tanh | odd rational function of degree 9/8, minimax fit on [0, 9.02] | 4e-7 relative |
| erf | odd rational function of degree 11/10, minimax fit on [0, 3.925] | 4e-7 relative |
| sigmoid | 1 / (1 + exp(-x)) | 4 ulp |
| sin, cos | reduction by pi/2 in float64, Taylor polynomials | 2 ulp below 1e6 |
| pow, constant exponent | products for whole exponents to 16; else exp(y log x) | 1e-6 for x^y near 1 |

Infinities and NaN come out as in IEEE 754 / C99; results of exp below 1.7e-38
are flushed to zero. Functions not listed are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Expr
from tvm.tirx import PrimFunc, Var

_INFINITY = math.inf
# 1.5 * 2^23: adding it to a float32 leaves the nearest integer in the low mantissa bits.
_ROUNDING = 12582912.0
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
_EXP_MAX = 88.7228394
_EXP_MIN = -86.9

# Cephes expf: exp(r) = 1 + r + r^2 P(r) for |r| <= ln(2)/2; highest power first.
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
        5.0000001201e-1)
# Cephes logf: log(1 + f) = f - f^2/2 + f^3 P(f).
_LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)
# Own fits (iteratively reweighted least squares on Chebyshev nodes, relative error):
# f(x) = x P(x^2) / Q(x^2), highest power first.
_TANH_P = (1.33193231e-08, 2.05837028e-05, 3.49404989e-03, 1.33797315e-01, 9.99999979e-01)
_TANH_Q = (7.76213393e-07, 3.28311657e-04, 2.58711336e-02, 4.67130468e-01, 1.0)
_ERF_P = (2.04596485e-06, 2.84836179e-04, 3.77247233e-03, 5.27690577e-02, 1.90592709e-01,
          1.12837915)
_ERF_Q = (3.80467361e-05, 1.16382806e-03, 1.49830534e-02, 1.14182194e-01, 5.02241122e-01, 1.0)
_MOST_PRODUCTS = 16


def lower_elementary_functions(function: PrimFunc) -> PrimFunc:
    """Replaces float32 calls of elementary functions in `function` by arithmetic.

    Given `B[i] = exp(A[i])`, the result is `B[i] = let x = A[i] in ...` without calls.
    float64 and float16 calls, and functions without a lowering, stay as they are.
    """
    body = tvm_ffi.structural_mutate(function.body, [(Call, _lower_call)])
    if body.same_as(function.body):
        return function
    return PrimFunc(list(function.params), body, function.ret_type, attrs=function.attrs)


def _lower_call(call: Call, mutator: object) -> Expr:
    mutated = mutator.default_mutate(call)  # type: ignore[attr-defined]
    if not isinstance(mutated, Call):
        return mutated
    name = str(getattr(mutated.op, "name", ""))
    if not name.startswith("tirx.") or str(getattr(mutated.ty, "dtype", "")) != "float32":
        return mutated
    short = name.removeprefix("tirx.")
    if short == "pow":
        base, exponent = mutated.args
        if isinstance(exponent, tirx.FloatImm):
            return _power(base, float(exponent.value))
        return mutated
    lower = _LOWERINGS.get(short)
    return mutated if lower is None else lower(mutated.args[0])


def _f32(value: float) -> Expr:
    return tirx.FloatImm("float32", value)


def _i32(value: int) -> Expr:
    return tirx.IntImm("int32", value)


def _let(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """`body` of a variable that is computed once."""
    if isinstance(value, (Var, tirx.FloatImm)):
        return body(value)
    variable = Var("t", value.ty)
    return tirx.Let(variable, value, body(variable))


def _horner(coefficients: Sequence[float], x: Expr) -> Expr:
    result = _f32(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + _f32(coefficient)
    return result


def _two_to_the(shifted: Expr) -> Expr:
    """2^(n - 1) for a float32 `shifted` that was computed as n + 126 + 1.5 * 2^23."""
    return tirx.reinterpret("float32", tirx.reinterpret("int32", shifted) << _i32(23))


def _exp_core(x: Expr, scale: float, reduce: Callable[[Expr], Expr], low: float, high: float
              ) -> Expr:
    """base^x, where `scale` = log2(base) and `reduce(n)` = (x - n / scale) ln(base)."""

    def of_shifted(shifted: Expr) -> Expr:
        return _let(
            shifted - _f32(_ROUNDING + 126),
            lambda n: _let(reduce(n), lambda r: of_remainder(r, shifted)),
        )

    def of_remainder(r: Expr, shifted: Expr) -> Expr:
        value = _horner(_EXP, r) * (r * r) + r + _f32(1.0)
        # Doubling before scaling by 2^(n-1) reaches n = 128, where 2^n would overflow.
        scaled = _let(value, lambda v: (v + v) * _two_to_the(shifted))
        flushed = tirx.Select(x < _f32(low), _f32(0.0), scaled)
        return tirx.Select(x > _f32(high), _f32(_INFINITY), flushed)

    return _let(x * _f32(scale) + _f32(_ROUNDING + 126), of_shifted)


def _exp(argument: Expr) -> Expr:
    return _let(
        argument,
        lambda x: _exp_core(
            x,
            1.44269504088896341,
            lambda n: x - n * _f32(_LN2_HIGH) - n * _f32(_LN2_LOW),
            _EXP_MIN,
            _EXP_MAX,
        ),
    )


def _exp2(argument: Expr) -> Expr:
    return _let(
        argument,
        lambda x: _exp_core(
            x, 1.0, lambda n: (x - n) * _f32(0.693147180559945), -125.4, 127.99999
        ),
    )


def _exp10(argument: Expr) -> Expr:
    # log10(2) in two parts, the first one exact in 8 bits.
    high, low = 0.30078125, 2.4874566e-4
    return _let(
        argument,
        lambda x: _exp_core(
            x,
            3.32192809488736235,
            lambda n: (x - n * _f32(high) - n * _f32(low)) * _f32(2.30258509299404568),
            -37.7,
            38.53183,
        ),
    )


def _log_core(x: Expr, finish: Callable[[Expr, Expr], Expr]) -> Expr:
    """`finish(e, log1p(f))` for x = 2^e (1 + f) with the special cases around it."""
    tiny = x < _f32(1.17549435e-38)
    normal = tirx.Select(tiny, x * _f32(8388608.0), x)
    bias = tirx.Select(tiny, _f32(-23.0), _f32(0.0))

    def of_bits(bits: Expr) -> Expr:
        exponent = (bits - _i32(0x3F3504F3)) >> _i32(23)
        return _let(
            exponent,
            lambda e: _let(
                tirx.reinterpret("float32", bits - (e << _i32(23))) - _f32(1.0),
                lambda f: finish(tirx.Cast("float32", e) + bias, f),
            ),
        )

    value = _let(tirx.reinterpret("int32", normal), of_bits)
    # NaN fails every comparison and is passed on; so is +inf.
    ordinary = tirx.Select(x < _f32(_INFINITY), value, x)
    negative = tirx.Select(x < _f32(0.0), _f32(math.nan), ordinary)
    return tirx.Select(tirx.EQ(x, _f32(0.0)), _f32(-_INFINITY), negative)


def _log(argument: Expr) -> Expr:
    def finish(e: Expr, f: Expr) -> Expr:
        def combine(exponent: Expr) -> Expr:
            square = f * f
            tail = f * square * _horner(_LOG, f) + exponent * _f32(_LN2_LOW)
            return f + (tail - square * _f32(0.5)) + exponent * _f32(_LN2_HIGH)

        return _let(e, combine)

    return _let(argument, lambda x: _log_core(x, finish))


def _log_base(scale: float) -> Callable[[Expr], Expr]:
    def lower(argument: Expr) -> Expr:
        return _log(argument) * _f32(scale)

    return lower


def _log2(argument: Expr) -> Expr:
    def finish(e: Expr, f: Expr) -> Expr:
        square = f * f
        fraction = f + (f * square * _horner(_LOG, f) - square * _f32(0.5))
        return e + fraction * _f32(1.44269504088896341)

    return _let(argument, lambda x: _log_core(x, finish))


def _log1p(argument: Expr) -> Expr:
    def of(x: Expr) -> Expr:
        def of_sum(u: Expr) -> Expr:
            corrected = _log(u) + (x - (u - _f32(1.0))) / u
            return tirx.Select(tirx.And(u > _f32(0.0), u < _f32(_INFINITY)), corrected, _log(u))

        return _let(x + _f32(1.0), of_sum)

    return _let(argument, of)


def _odd_rational(
    numerator: Sequence[float], denominator: Sequence[float], limit: float
) -> Callable[[Expr], Expr]:
    """x P(x^2) / Q(x^2) with x held within [-limit, limit]; NaN passes through."""

    def lower(argument: Expr) -> Expr:
        def of(x: Expr) -> Expr:
            below = tirx.Select(x < _f32(-limit), _f32(-limit), x)
            return _let(below, lambda b: _let(tirx.Select(b > _f32(limit), _f32(limit), b), ratio))

        def ratio(x: Expr) -> Expr:
            return _let(
                x * x, lambda t: (x * _horner(numerator, t)) / _horner(denominator, t)
            )

        return _let(argument, of)

    return lower


def _sigmoid(argument: Expr) -> Expr:
    return _f32(1.0) / (_f32(1.0) + _exp(_f32(0.0) - argument))


def _sine(quarter: int) -> Callable[[Expr], Expr]:
    """sin(x + quarter * pi/2). The reduction in float64 is exact enough to |x| = 1e7."""

    def f64(value: float) -> Expr:
        return tirx.FloatImm("float64", value)

    def lower(argument: Expr) -> Expr:
        wide = tirx.Cast("float64", argument)
        rounding = 6755399441055744.0  # 1.5 * 2^52

        def of(x: Expr) -> Expr:
            return _let(x * f64(2.0 / math.pi) + f64(rounding), lambda s: of_shifted(x, s))

        def of_shifted(x: Expr, shifted: Expr) -> Expr:
            n = shifted - f64(rounding)
            remainder = tirx.Cast("float32", x - n * f64(math.pi / 2))
            bits = tirx.Cast("int32", tirx.reinterpret("int64", shifted) & tirx.const(3, "int64"))
            return _let(remainder, lambda r: _let(bits + _i32(quarter), lambda q: of_rest(r, q)))

        def of_rest(r: Expr, quadrant: Expr) -> Expr:
            def value(t: Expr) -> Expr:
                sine = r + r * t * _horner(
                    (2.6000548e-6, -1.9806615e-4, 8.3330173e-3, -1.6666657e-1), t
                )
                cosine = _f32(1.0) + t * _horner(
                    (2.3153932e-5, -1.3854137e-3, 4.1663583e-2, -0.49999905), t
                )
                even = tirx.EQ(tirx.bitwise_and(quadrant, _i32(1)), _i32(0))
                positive = tirx.EQ(tirx.bitwise_and(quadrant, _i32(2)), _i32(0))
                return _let(
                    tirx.Select(even, sine, cosine),
                    lambda v: tirx.Select(positive, v, _f32(0.0) - v),
                )

            return _let(r * r, value)

        return _let(wide, of)

    return lower


def _power(base: Expr, exponent: float) -> Expr:
    """x^y for a constant y."""
    whole = exponent == int(exponent) if math.isfinite(exponent) else False
    if whole and abs(exponent) <= _MOST_PRODUCTS:
        count = abs(int(exponent))
        if count == 0:
            return _f32(1.0)
        value = _let(base, lambda x: _product(x, count))
        return value if exponent > 0 else _f32(1.0) / value
    if exponent == 0.5:
        return tirx.sqrt(base)
    if exponent == -0.5:
        return _f32(1.0) / tirx.sqrt(base)
    if whole or not math.isfinite(exponent):
        return tirx.pow(base, _f32(exponent))
    return _exp(_log(base) * _f32(exponent))


def _product(x: Expr, count: int) -> Expr:
    if count == 1:
        return x
    half = _let(_product(x, count // 2), lambda h: h * h)
    return half * x if count % 2 else half


_LOWERINGS: dict[str, Callable[[Expr], Expr]] = {
    "exp": _exp,
    "exp2": _exp2,
    "exp10": _exp10,
    "log": _log,
    "log2": _log2,
    "log10": _log_base(0.434294481903251828),
    "log1p": _log1p,
    "tanh": _odd_rational(_TANH_P, _TANH_Q, 9.02),
    "erf": _odd_rational(_ERF_P, _ERF_Q, 3.925),
    "sigmoid": _sigmoid,
    "sin": _sine(0),
    "cos": _sine(1),
}
