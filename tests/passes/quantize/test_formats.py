"""Properties that every number format has, and what is particular to each."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.cluster.vq import kmeans2

from tinsmith.passes.quantize.formats import (
    BFLOAT16,
    FLOAT16,
    Binary,
    FormatError,
    KMeansCodebook,
    MeanCentred,
    NumberFormat,
    PerChannel,
    PerGroup,
    PerTensor,
    PowerOfTwo,
    UniformAffine,
    UniformSymmetric,
    largest_group,
)

SHAPE = (4, 6)
GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(-1), PerGroup(1, 3), PerGroup(0, 2)]
KINDS = (UniformAffine, UniformSymmetric, MeanCentred, PowerOfTwo, KMeansCodebook)
FORMATS: list[NumberFormat] = [
    *(kind(bits=bits) for kind in KINDS for bits in (8, 4, 2)),
    *(kind(bits=4, granularity=granularity) for kind in KINDS for granularity in GRANULARITIES[1:]),
    *(Binary(granularity=granularity) for granularity in GRANULARITIES),
    UniformAffine(signed=True),
    UniformAffine(bits=7),
    BFLOAT16,
    FLOAT16,
]
MAGNITUDE = st.floats(2.0**-40, 2.0**40, width=32)
VALUES = st.one_of(MAGNITUDE, MAGNITUDE.map(lambda value: -value), st.just(0.0))
ARRAYS = arrays.arrays(np.float32, SHAPE, elements=VALUES)


def rounding(array: np.ndarray) -> float:
    """What float32 arithmetic may add to an error bound."""
    return float(np.abs(array).max(initial=0.0)) * 1e-5 + 1e-30


@pytest.mark.parametrize("number_format", FORMATS, ids=str)
@settings(max_examples=25, deadline=None)
@given(fitted=ARRAYS, other=ARRAYS)
def test_the_error_is_within_its_bound(
    number_format: NumberFormat, fitted: np.ndarray, other: np.ndarray
) -> None:
    """For the values that the parameters were fitted to, and for any others."""
    parameters = number_format.fit(fitted)
    for array in (fitted, other):
        decoded = number_format.decode(number_format.encode(array, parameters), parameters)
        assert decoded.dtype == np.float32 and decoded.shape == array.shape
        error = np.abs(decoded.astype(np.float64) - array)
        bound = number_format.error_bound(array, parameters)
        assert (error <= bound + rounding(np.stack([fitted, array]))).all()


@pytest.mark.parametrize("number_format", FORMATS, ids=str)
@settings(max_examples=25, deadline=None)
@given(ARRAYS)
def test_encoding_decoded_values_changes_nothing(
    number_format: NumberFormat, array: np.ndarray
) -> None:
    quantized = number_format.quantize(array)
    values = quantized.dequantize()
    again = number_format.encode(values, quantized.parameters)
    assert np.array_equal(number_format.decode(again, quantized.parameters), values)


@pytest.mark.parametrize("number_format", FORMATS, ids=str)
@settings(max_examples=25, deadline=None)
@given(ARRAYS)
def test_monotone(number_format: NumberFormat, array: np.ndarray) -> None:
    """With the same parameters, a larger value never becomes a smaller one."""
    parameters = number_format.fit(array)
    order = np.sort(array.reshape(-1))
    same_block = [np.full(SHAPE, value, np.float32) for value in order]
    decoded = [
        number_format.decode(number_format.encode(block, parameters), parameters)
        for block in same_block
    ]
    assert all((a <= b).all() for a, b in itertools.pairwise(decoded))


@pytest.mark.parametrize(
    "number_format",
    [f for f in FORMATS if not isinstance(f, Binary | MeanCentred | KMeansCodebook)],
    ids=str,
)
@settings(max_examples=25, deadline=None)
@given(ARRAYS)
def test_zero_is_exact(number_format: NumberFormat, array: np.ndarray) -> None:
    parameters = number_format.fit(array)
    zero = number_format.encode(np.zeros(SHAPE, np.float32), parameters)
    assert not number_format.decode(zero, parameters).any()


@pytest.mark.parametrize("kind", [UniformAffine, UniformSymmetric])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_uniform_error_is_half_a_step_in_range(kind: type, bits: int) -> None:
    array = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
    quantized = kind(bits=bits, granularity=PerChannel(0)).quantize(array)
    error = np.abs(quantized.dequantize() - array).max(1)
    scale = quantized.parameters["scale"]
    # An affine range is shifted by up to half a step to make zero exact.
    assert (error <= scale * (1.0 if kind is UniformAffine else 0.5) * 1.0001).all()


def test_affine_follows_its_formula() -> None:
    array = np.float32([0.0, 0.11, 0.52, 0.93, 1.0])
    quantized = UniformAffine(bits=8).quantize(array)
    assert quantized.codes.tolist() == np.rint(array * 255).astype(int).tolist()
    assert quantized.codes.dtype == np.uint8
    assert UniformAffine(signed=True).quantize(array).codes.tolist() == [-128, -100, 5, 109, 127]


def test_mean_centred_gains_where_values_cluster_away_from_zero() -> None:
    array = np.random.default_rng(1).normal(5.0, 0.1, (1, 1000)).astype(np.float32)

    def worst(kind: NumberFormat) -> float:
        return float(np.abs(kind.quantize(array).dequantize() - array).max())

    assert worst(MeanCentred(bits=4)) < worst(UniformAffine(bits=4)) / 5


def test_groups_follow_local_ranges() -> None:
    array = np.concatenate([np.full((1, 32), 0.01), np.full((1, 32), 100.0)], 1).astype(np.float32)
    quantized = UniformSymmetric(bits=4, granularity=PerGroup(1, 32)).quantize(array)
    assert quantized.parameters["scale"].shape == (1, 2)
    assert np.allclose(quantized.dequantize(), array, rtol=1e-6)


def test_parameters_of_groups_stand_where_the_groups_are() -> None:
    array = np.random.default_rng(2).standard_normal((6, 4, 5)).astype(np.float32)
    scale = UniformSymmetric(granularity=PerGroup(1, 2)).quantize(array).parameters["scale"]
    expected = np.abs(array.reshape(6, 2, 2, 5)).max(2) / 127
    assert scale.shape == (6, 2, 5)
    assert np.allclose(scale, expected, rtol=1e-6)


def test_binary_is_the_sign_times_the_mean() -> None:
    array = np.float32([[1.0, -3.0, 2.0], [-0.5, 0.0, 0.25]])
    assert Binary().quantize(array).dequantize().tolist() == [[2, -2, 2], [-0.25, 0.25, 0.25]]


def test_powers_of_two_are_powers_of_two() -> None:
    array = np.float32([[1.4, 0.7, -0.36, 0.1, 0.02, 0.0, -1e-9]])
    quantized = PowerOfTwo(bits=4).quantize(array)
    assert quantized.dequantize().tolist() == [[1.0, 0.5, -0.25, 0.125, 0.015625, 0.0, 0.0]]
    assert quantized.parameters["exponent"] == 0
    assert np.abs(quantized.codes).max() == 7


def test_codebook_is_as_good_as_k_means_begun_at_random() -> None:
    array = np.random.default_rng(3).standard_t(4, 20000).astype(np.float32)
    ours = KMeansCodebook(bits=4).quantize(array)
    error = float(np.square(ours.dequantize() - array).mean())
    best = np.inf
    for seed in range(3):
        centres, labels = kmeans2(array[:, None], 16, iter=50, minit="++", rng=seed)
        best = min(best, float(np.square(centres[labels, 0] - array).mean()))
    assert error <= best * 1.02
    uniform = UniformSymmetric(bits=4).quantize(array).dequantize()
    assert error < float(np.square(uniform - array).mean()) / 2


def test_few_distinct_values_have_an_exact_codebook() -> None:
    array = np.float32([[-1.0, 0.0, 0.25], [0.25, 0.0, 7.0]])
    assert np.array_equal(KMeansCodebook(bits=2).quantize(array).dequantize(), array)


def test_floats_agree_with_numpy_and_saturate() -> None:
    array = np.float32([1.0, 1.0 + 2.0**-9, 70000.0, -1e-8, 0.1])
    assert BFLOAT16.quantize(array).dequantize()[1] == 1.0
    half = FLOAT16.quantize(array).dequantize()
    assert half[2] == 65504.0
    assert half[4] == np.float32(np.float16(0.1))


def test_storage_counts_packed_codes_and_parameters() -> None:
    array = np.ones((8, 64), np.float32)
    assert UniformSymmetric(bits=4).quantize(array).storage_bytes == 8 * 32 + 4
    grouped = UniformSymmetric(bits=4, granularity=PerGroup(1, 32)).quantize(array)
    assert grouped.storage_bytes == 8 * 32 + 16 * 4
    assert Binary().quantize(array).storage_bytes == 64 + 8 * 4


def test_largest_group() -> None:
    assert [largest_group(extent, 32) for extent in (64, 27, 3, 50, 31)] == [32, 27, 3, 25, 31]


def test_refusals_are_one_clear_line() -> None:
    array = np.zeros((4, 6), np.float32)
    for message, action in [
        ("choose 8, 4 or 2", lambda: UniformAffine(bits=16)),
        ("2 to 8 bits", lambda: PowerOfTwo(bits=1)),
        ("1 to 8 bits", lambda: KMeansCodebook(bits=9)),
        ("1 bit", lambda: Binary(bits=2)),
        ("divisor such as 3", lambda: UniformAffine(granularity=PerGroup(1, 4)).quantize(array)),
        ("does not exist", lambda: UniformAffine(granularity=PerChannel(2)).quantize(array)),
        ("at least 1", lambda: PerGroup(0, 0)),
        ("NaN or infinity", lambda: BFLOAT16.quantize(array + np.nan)),
        ("no values", lambda: UniformAffine().quantize(array[:0])),
    ]:
        with pytest.raises(FormatError, match=message) as caught:
            action()
        assert "\n" not in str(caught.value)
