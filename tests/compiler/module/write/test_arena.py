"""Arena planning."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tinsmith.compiler.module.write.arena import ALIGNMENT, Lifetime, live_peak, place_buffers

lifetimes = st.lists(
    st.builds(
        lambda size, first, length: Lifetime(size, first, first + length),
        st.integers(0, 5000),
        st.integers(0, 20),
        st.integers(0, 6),
    ),
    max_size=30,
)


@settings(derandomize=True)
@given(lifetimes)
def test_buffers_alive_together_do_not_share_memory(buffers: list[Lifetime]) -> None:
    offsets, total = place_buffers(buffers)
    for i, a in enumerate(buffers):
        assert offsets[i] % ALIGNMENT == 0
        assert offsets[i] + a.size <= total
        for j in range(i):
            b = buffers[j]
            if a.overlaps(b):
                apart = offsets[i] + a.padded <= offsets[j] or offsets[j] + b.padded <= offsets[i]
                assert apart
    assert total >= live_peak(buffers)


def test_a_chain_needs_two_buffers() -> None:
    chain = [Lifetime(1024, step, step + 1) for step in range(20)]
    assert place_buffers(chain)[1] == 2048 == live_peak(chain)


def test_the_smallest_gap_that_fits_is_taken() -> None:
    # Two gaps are left at step 1, between buffers that live throughout.
    buffers = [
        Lifetime(6400, 0, 0), Lifetime(1280, 0, 2), Lifetime(640, 0, 0), Lifetime(576, 0, 2),
        Lifetime(512, 1, 1),
    ]  # fmt: skip
    offsets, total = place_buffers(buffers)
    assert offsets[4] == offsets[2]
    assert total == live_peak(buffers)


def test_nothing_needs_nothing() -> None:
    assert place_buffers([]) == ([], 0)
    assert live_peak([]) == 0
