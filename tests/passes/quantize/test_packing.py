"""Codes of less than a byte: round trip, order of the bits, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinsmith.passes.quantize.formats import FormatError, pack, unpack


@given(
    st.sampled_from([1, 2, 4, 8]), st.booleans(), st.integers(1, 3), st.integers(1, 40), st.data()
)
def test_round_trip(bits: int, signed: bool, rows: int, count: int, data: st.DataObject) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    dtype = np.int8 if signed else np.uint8
    codes = generator.integers(low, high, (rows, count)).astype(dtype)
    packed = pack(codes, bits)
    assert packed.shape == (rows, -(-count * bits // 8))
    back = unpack(packed, bits, count, signed=signed)
    assert back.dtype == dtype
    assert np.array_equal(back, codes)


def test_the_first_code_lies_lowest() -> None:
    assert pack(np.uint8([1, 2, 3]), 4).tolist() == [0x21, 0x03]
    assert pack(np.int8([-1, 1]), 4).tolist() == [0x1F]
    assert pack(np.uint8([1, 0, 0, 0, 0, 0, 0, 1, 1]), 1).tolist() == [0x81, 0x01]
    assert pack(np.uint8([3, 0, 1, 2]), 2).tolist() == [0b10010011]


def test_refusals() -> None:
    with pytest.raises(FormatError, match="choose 1, 2, 4 or 8"):
        pack(np.uint8([1]), 3)
    with pytest.raises(FormatError, match="do not fit 4 bits"):
        pack(np.int8([8]), 4)
    with pytest.raises(FormatError, match="int8 or uint8"):
        pack(np.int32([1]), 4)
    with pytest.raises(FormatError, match="3 codes of 4 bits are 2 bytes"):
        unpack(np.uint8([1]), 4, 3, signed=False)
