"""Elementary functions as branch-free float32 arithmetic.

Additions, multiplications, comparisons and integer shifts only: no instruction
for rounding or fused multiplication is required. Measured against float64 over all of the
functions' ranges (tests/targets/cpu/test_elementary_functions.py):

| function | method | greatest error |
|---|---|---|
| exp, exp2, exp10 | 2^n times a polynomial (Cephes `expf` coefficients) | 2 ulp, 10: 4 ulp |
| log, log2, log10 | exponent plus a polynomial on [sqrt(1/2), sqrt(2)] (Cephes `logf`) | 2 ulp |
| log1p | log(1 + x) corrected for the rounding of 1 + x | 4 ulp |
| tanh | odd rational function of degree 9/8, minimax fit on [0, 9.02] | 4e-7 relative |
| erf | odd rational function of degree 11/10, minimax fit on [0, 3.925] | 4e-7 relative |
| sigmoid | 1 / (1 + exp(-x)) | 4 ulp |
| sin, cos | reduction by pi/2 in float64, polynomials (Cephes) | 2 ulp below 1e6 |
| pow, constant exponent | products to the 16th power; else exp(y log x) | 1e-6 near x^y = 1 |

Infinities and NaN come out as in IEEE 754 / C99; results of exp below 1.7e-38
are flushed to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.ir import Expr

from tinsmith.targets.cpu import loops

_INFINITY = math.inf
# 1.5 * 2^23: adding it to a float32 leaves the nearest integer in the low mantissa bits.
_ROUNDING = 12582912.0
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4

# Cephes expf: exp(r) = 1 + r + r^2 P(r) for |r| <= ln(2)/2; highest power first.
_EXP = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
# Cephes logf: log(1 + f) = f - f^2/2 + f^3 P(f).
_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
# Own fits (iteratively reweighted least squares on Chebyshev nodes, relative error):
# f(x) = x P(x^2) / Q(x^2), highest power first.
_TANH_P = (1.33193231e-08, 2.05837028e-05, 3.49404989e-03, 1.33797315e-01, 9.99999979e-01)
_TANH_Q = (7.76213393e-07, 3.28311657e-04, 2.58711336e-02, 4.67130468e-01, 1.0)
_ERF_P = (
    2.04596485e-06,
    2.84836179e-04,
    3.77247233e-03,
    5.27690577e-02,
    1.90592709e-01,
    1.12837915,
)
_ERF_Q = (3.80467361e-05, 1.16382806e-03, 1.49830534e-02, 1.14182194e-01, 5.02241122e-01, 1.0)
# Cephes sinf and cosf on [-pi/4, pi/4].
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
# Here both are exactly 1, as they are at infinity, whichever products are fused with sums.
_TANH_LIMIT, _ERF_LIMIT = 9.023, 3.923
_MOST_PRODUCTS = 16

# 1/3!, 1/5!, ... from the highest: sinh(x) = x + x^3 (1/3! + x^2 / 5! + ...).
_SINH = (1 / 39916800, 1 / 362880, 1 / 5040, 1 / 120, 1 / 6)


def _with_lanes(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


class Maths:
    """Literals and conversions with the lanes of the call that is replaced."""

    def __init__(self, bind: Callable[[Expr], Expr], lanes: int) -> None:
        self.bind = bind
        self._lanes = lanes

    def literal(self, value: float, dtype: str) -> Expr:
        """`value` in all lanes."""
        kind = tirx.IntImm if dtype.startswith("int") else tirx.FloatImm
        return loops.splat(kind(dtype, value), self._lanes)

    def f32(self, value: float) -> Expr:
        """A float32 literal."""
        return self.literal(value, "float32")

    def f64(self, value: float) -> Expr:
        """A float64 literal."""
        return self.literal(value, "float64")

    def i32(self, value: int) -> Expr:
        """An int32 literal."""
        return self.literal(value, "int32")

    def cast(self, dtype: str, value: Expr) -> Expr:
        """A conversion by value."""
        return tirx.Cast(_with_lanes(dtype, self._lanes), value)

    def bits(self, dtype: str, value: Expr) -> Expr:
        """A conversion by bit pattern."""
        return tirx.reinterpret(_with_lanes(dtype, self._lanes), value)


def _horner(m: Maths, coefficients: Sequence[float], x: Expr) -> Expr:
    result = m.f32(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + m.f32(coefficient)
    return result


def _clamped(m: Maths, x: Expr, low: float, high: float) -> Expr:
    """`x` held within [low, high]. In this form, one instruction for each side, NaN passes."""
    x = m.bind(tirx.Select(x < m.f32(low), m.f32(low), x))
    return m.bind(tirx.Select(x > m.f32(high), m.f32(high), x))


def _exponential(
    m: Maths,
    argument: Expr,
    scale: float,
    remainder: Callable[[Expr, Expr], Expr],
) -> Expr:
    """base^x, where `scale` = log2(base) and `remainder(x, n)` = (x - n / scale) ln(base).

    The limits need no selection at the end: at the lower one 2^(n - 1) comes out as
    zero, at the upper one the product overflows to infinity.
    """
    x = _clamped(m, m.bind(argument), -126.0 / scale, 128.4 / scale)
    # n + 126 ends up in the low bits of `shifted`: moved up by 23 they are 2^(n - 1).
    shifted = m.bind(x * m.f32(scale) + m.f32(_ROUNDING + 126))
    n = m.bind(shifted - m.f32(_ROUNDING + 126))
    r = m.bind(remainder(x, n))
    value = m.bind(_horner(m, _EXP, r) * (r * r) + r + m.f32(1.0))
    power = m.bits("float32", m.bits("int32", shifted) << m.i32(23))
    # Doubling before scaling by 2^(n-1) reaches n = 128, where 2^n would overflow.
    return (value + value) * power


def _exp(m: Maths, argument: Expr) -> Expr:
    return _exponential(
        m,
        argument,
        1.44269504088896341,
        lambda x, n: x - n * m.f32(_LN2_HIGH) - n * m.f32(_LN2_LOW),
    )


def _exp2(m: Maths, argument: Expr) -> Expr:
    return _exponential(m, argument, 1.0, lambda x, n: (x - n) * m.f32(0.693147180559945))


def _exp10(m: Maths, argument: Expr) -> Expr:
    # log10(2) in two parts, the first one exact in 8 bits.
    high, low = 0.30078125, 2.4874566e-4
    return _exponential(
        m,
        argument,
        3.32192809488736235,
        lambda x, n: (x - n * m.f32(high) - n * m.f32(low)) * m.f32(2.30258509299404568),
    )


def _exponent_and_fraction(m: Maths, x: Expr) -> tuple[Expr, Expr]:
    """(e, f) with x = 2^e (1 + f) and sqrt(1/2) <= 1 + f < sqrt(2), for positive x."""
    tiny = x < m.f32(1.17549435e-38)
    normal = m.bind(tirx.Select(tiny, x * m.f32(8388608.0), x))
    bits = m.bind(m.bits("int32", normal))
    e = m.bind((bits - m.i32(0x3F3504F3)) >> m.i32(23))
    f = m.bind(m.bits("float32", bits - (e << m.i32(23))) - m.f32(1.0))
    bias = tirx.Select(tiny, m.f32(-23.0), m.f32(0.0))
    return m.bind(m.cast("float32", e) + bias), f


def _with_log_limits(m: Maths, x: Expr, value: Expr) -> Expr:
    """Logarithms of 0, negative numbers, infinity and NaN (which fails every comparison)."""
    ordinary = tirx.Select(x < m.f32(_INFINITY), m.bind(value), x)
    negative = tirx.Select(x < m.f32(0.0), m.f32(math.nan), ordinary)
    return tirx.Select(tirx.EQ(x, m.f32(0.0)), m.f32(-_INFINITY), negative)


def _log(m: Maths, argument: Expr) -> Expr:
    x = m.bind(argument)
    e, f = _exponent_and_fraction(m, x)
    square = m.bind(f * f)
    tail = f * square * _horner(m, _LOG, f) + e * m.f32(_LN2_LOW)
    value = f + (tail - square * m.f32(0.5)) + e * m.f32(_LN2_HIGH)
    return _with_log_limits(m, x, value)


def _log2(m: Maths, argument: Expr) -> Expr:
    x = m.bind(argument)
    e, f = _exponent_and_fraction(m, x)
    square = m.bind(f * f)
    fraction = f + (f * square * _horner(m, _LOG, f) - square * m.f32(0.5))
    return _with_log_limits(m, x, e + fraction * m.f32(1.44269504088896341))


def _log10(m: Maths, argument: Expr) -> Expr:
    return _log(m, argument) * m.f32(0.434294481903251828)


def _log1p(m: Maths, argument: Expr) -> Expr:
    x = m.bind(argument)
    u = m.bind(x + m.f32(1.0))
    plain = m.bind(_log(m, u))
    corrected = plain + (x - (u - m.f32(1.0))) / u
    return tirx.Select(tirx.And(u > m.f32(0.0), u < m.f32(_INFINITY)), corrected, plain)


def _odd_rational(
    numerator: Sequence[float], denominator: Sequence[float], limit: float
) -> Callable[[Maths, Expr], Expr]:
    """x P(x^2) / Q(x^2) with x held within [-limit, limit]; NaN passes through."""

    def lower(m: Maths, argument: Expr) -> Expr:
        x = _clamped(m, m.bind(argument), -limit, limit)
        t = m.bind(x * x)
        return (x * _horner(m, numerator, t)) / _horner(m, denominator, t)

    return lower


def _sigmoid(m: Maths, argument: Expr) -> Expr:
    return m.f32(1.0) / (m.f32(1.0) + _exp(m, argument * m.f32(-1.0)))


def _cosh(m: Maths, argument: Expr) -> Expr:
    root = m.bind(_exp_of_half(m, m.bind(argument)))
    return root * m.f32(0.5) * root + m.f32(0.5) / root / root


def _exp_of_half(m: Maths, x: Expr) -> Expr:
    """e^(|x| / 2), whose square may be twice as large as the largest float32."""
    half = m.f32(0.5)
    return _exp(m, tirx.Select(x < m.f32(0.0), x * m.f32(-0.5), x * half))


def _sinh(m: Maths, argument: Expr) -> Expr:
    x = m.bind(argument)
    t = m.bind(x * x)
    # Taylor's series to x^11 near zero, where the difference of exponentials cancels.
    near = m.bind(x + x * t * _horner(m, _SINH, t))
    negative = x < m.f32(0.0)
    root = m.bind(_exp_of_half(m, x))
    far = m.bind(root * m.f32(0.5) * root - m.f32(0.5) / root / root)
    signed = tirx.Select(negative, m.f32(0.0) - far, far)
    return tirx.Select(t < m.f32(1.0), near, signed)


def _sine(quarter: int) -> Callable[[Maths, Expr], Expr]:
    """sin(x + quarter * pi/2). The reduction in float64 is exact enough to |x| = 1e7."""

    def lower(m: Maths, argument: Expr) -> Expr:
        rounding = 6755399441055744.0  # 1.5 * 2^52
        x = m.bind(m.cast("float64", argument))
        shifted = m.bind(x * m.f64(2.0 / math.pi) + m.f64(rounding))
        n = shifted - m.f64(rounding)
        r = m.bind(m.cast("float32", x - n * m.f64(math.pi / 2)))
        low_bits = m.cast("int32", m.bits("int64", shifted))
        quadrant = m.bind(low_bits + m.i32(quarter))
        t = m.bind(r * r)
        sine = m.bind(r + r * t * _horner(m, _SIN, t))
        cosine = m.bind(m.f32(1.0) - t * m.f32(0.5) + t * t * _horner(m, _COS, t))
        even = tirx.EQ(tirx.bitwise_and(quadrant, m.i32(1)), m.i32(0))
        positive = tirx.EQ(tirx.bitwise_and(quadrant, m.i32(2)), m.i32(0))
        value = m.bind(tirx.Select(even, sine, cosine))
        return tirx.Select(positive, value, m.f32(0.0) - value)

    return lower


def power(m: Maths, base: Expr, exponent: float) -> Expr:
    """x^y for a constant y."""
    whole = math.isfinite(exponent) and exponent == int(exponent)
    if whole and abs(exponent) <= _MOST_PRODUCTS:
        value = _product(m, m.bind(base), abs(int(exponent)))
        return value if exponent >= 0 else m.f32(1.0) / value
    if exponent == 0.5:
        return tirx.sqrt(base)
    if exponent == -0.5:
        # As C's pow has it, -0 counts as 0, and nothing is left of minus infinity.
        x = m.bind(base)
        unsigned = tirx.Select(tirx.EQ(x, m.f32(0.0)), m.f32(0.0), x)
        value = m.bind(m.f32(1.0) / tirx.sqrt(unsigned))
        return tirx.Select(tirx.EQ(x, m.f32(-_INFINITY)), m.f32(0.0), value)
    if whole or not math.isfinite(exponent):
        return tirx.pow(base, m.f32(exponent))
    return _exp(m, _log(m, base) * m.f32(exponent))


def _product(m: Maths, x: Expr, count: int) -> Expr:
    if count == 0:
        return m.f32(1.0)
    if count == 1:
        return x
    half = m.bind(_product(m, x, count // 2))
    return half * half * x if count % 2 else half * half


LOWERINGS: dict[str, Callable[[Maths, Expr], Expr]] = {
    "exp": _exp,
    "exp2": _exp2,
    "exp10": _exp10,
    "log": _log,
    "log2": _log2,
    "log10": _log10,
    "log1p": _log1p,
    "tanh": _odd_rational(_TANH_P, _TANH_Q, _TANH_LIMIT),
    "erf": _odd_rational(_ERF_P, _ERF_Q, _ERF_LIMIT),
    "sigmoid": _sigmoid,
    "cosh": _cosh,
    "sinh": _sinh,
    "sin": _sine(0),
    "cos": _sine(1),
}
