"""Which kernels belong to a layer, and when layers go back to float for the sake of time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import pytest

from tinsmith.compiler.evaluate.layer_timing import Timing, kernel_owners, measure
from tinsmith.compiler.quantization.recipe import Mixture, Prepared
from tinsmith.compiler.quantization.report import LayerReport
from tinsmith.compiler.quantization.speed import measured, slower_layers
from tinsmith.passes.graph.fused_groups import KernelCall


def test_a_conversion_belongs_to_the_layer_that_reads_it() -> None:
    calls = [
        KernelCall(("x_q",), (1,)),  # a conversion before layer a
        KernelCall(("t1", "a", "relu"), (2, 3)),
        KernelCall(("pool",), (4,)),  # of the float graph: between layers
        KernelCall(("shared_q",), (4, 5)),  # read by two layers
        KernelCall(("b",), ()),
        KernelCall(("c",), ()),
    ]
    owners = kernel_owners(calls, {"a", "b", "c"}, {"x", "a", "relu", "pool", "b", "c"})
    assert owners == ("a", "a", None, None, "b", "c")


def test_a_layer_is_slower_beyond_ratio_and_microseconds() -> None:
    exact = Timing(1.0, {"a": 100e-6, "b": 100e-6, "c": 2e-6, "d": 100e-6})
    own = Timing(1.0, {"a": 109e-6, "b": 112e-6, "c": 6e-6, "d": 30e-6, "e": 1.0})
    assert slower_layers(exact, own, "abcde") == ("b",)


@dataclass
class _Candidate:
    prepared: Prepared
    timing: Timing


class _Mixture(Mixture):
    def keeping(self, kept) -> Prepared:
        return _prepared(set(kept))

    def probe(self):
        raise NotImplementedError


def _prepared(kept: set[str]) -> Prepared:
    layers = tuple(
        LayerReport(name, "nn.conv2d", "float" if name in kept else "integer") for name in "abc"
    )
    return Prepared((), None, (), layers, _Mixture())


class _Bench:
    """Answers given timings for the graph with no layer in float, and with layer b."""

    def __init__(self, exact: Timing, integer: Timing, mixed: Timing) -> None:
        self.timings = {(): integer, ("b",): mixed}
        self.exact = exact
        self.discarded: list[_Candidate] = []

    def candidate(self, prepared: Prepared) -> _Candidate:
        kept = tuple(layer.name for layer in prepared.layers if layer.computes == "float")
        return _Candidate(prepared, self.timings[kept])

    def measure(self, *candidates: _Candidate) -> tuple[Timing, ...]:
        return (self.exact, *(made.timing for made in candidates))

    def discard(self, candidate: _Candidate) -> None:
        self.discarded.append(candidate)


_EXACT = Timing(300e-6, dict.fromkeys("abc", 100e-6))
_INTEGER = Timing(230e-6, {"a": 30e-6, "b": 170e-6, "c": 30e-6})


def test_a_slow_layer_goes_back_if_the_model_gains() -> None:
    bench = _Bench(_EXACT, _INTEGER, Timing(190e-6, {"a": 40e-6, "b": 110e-6, "c": 40e-6}))
    first = bench.candidate(_prepared(set()))
    speed = measured(bench, first, fallback=True)
    assert speed.returned == ("b",)
    assert speed.candidate is not first
    assert bench.discarded == [first]
    assert speed.tried is _INTEGER
    assert "1 layer (b) went back to float32" in speed.notes[0]


@pytest.mark.parametrize(("fallback", "gain"), [(False, 100e-6), (True, 2e-6), (True, -50e-6)])
def test_nothing_goes_back_without_a_gain_or_against_the_user(fallback, gain) -> None:
    mixed = Timing(_INTEGER.total - gain, {"a": 30e-6, "b": 100e-6, "c": 30e-6})
    bench = _Bench(_EXACT, _INTEGER, mixed)
    first = bench.candidate(_prepared(set()))
    speed = measured(bench, first, fallback)
    assert speed.candidate is first
    assert speed.returned == ()
    assert "b) are slower in integers than in float32, and stay" in speed.notes[0]


def test_a_trial_that_is_not_accepted_is_dropped() -> None:
    bench = _Bench(_EXACT, _INTEGER, Timing(100e-6, {"a": 40e-6, "b": 20e-6, "c": 40e-6}))
    first = bench.candidate(_prepared(set()))
    assert measured(bench, first, fallback=True, accepts=lambda _: False).candidate is first


def test_a_model_that_is_slower_as_a_whole_is_warned_about() -> None:
    slow = Timing(400e-6, dict.fromkeys("abc", 100e-6))
    bench = _Bench(_EXACT, slow, slow)
    speed = measured(bench, bench.candidate(_prepared(set())), fallback=True)
    assert speed.notes[0].startswith("warning: this module is slower than the float32 module")


def test_times_under_load_decide_nothing() -> None:
    """Equal runs of one of the modules differ by half."""
    faster = Timing(190e-6, {"a": 40e-6, "b": 110e-6, "c": 40e-6})
    for loaded in range(3):
        exact, own, mixed = (
            replace(timing, spread=0.5 if index == loaded else 0.1)
            for index, timing in enumerate((_EXACT, _INTEGER, faster))
        )
        bench = _Bench(exact, own, mixed)
        first = bench.candidate(_prepared(set()))
        speed = measured(bench, first, fallback=True)
        assert speed.candidate is first and speed.returned == ()
        assert len(speed.notes) == 1 and "equal runs differ by 50%" in speed.notes[0]
        assert len(bench.discarded) == (loaded == 2)


def test_the_spread_is_that_of_equal_runs() -> None:
    class Module:
        """Takes twice as long in every other round."""

        calls = ()

        def __init__(self, slow: float) -> None:
            self.slow, self.runs = slow, 0

        def run(self, inputs: object) -> None:
            self.runs += 1
            time.sleep(self.slow if self.runs % 2 else 0.02)

        def profile(self, inputs: object) -> list[float]:
            return []

    even, uneven = measure([Module(0.02), Module(0.06)], (), (), (), rounds=3)
    assert uneven.spread > 0.3 and not uneven.is_steady
    assert even.total > 0.01
