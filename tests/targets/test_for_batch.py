"""Algorithms and orders of tasks of kernels whose batch is open."""

from __future__ import annotations

from collections.abc import Hashable

from tinsmith.targets.algorithms import DIRECT, ForBatch
from tinsmith.targets.cpu.operators.algorithms import ConvolutionAlgorithms
from tinsmith.targets.cpu.operators.convolution import ConvolutionWorkload
from tinsmith.targets.cpu.operators.winograd import WinogradWorkload
from tinsmith.targets.cpu.schedules.matmul import MatmulTemplate
from tinsmith.targets.cpu.schedules.winograd import WinogradTemplate
from tinsmith.targets.registry import get_target
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Match


def convolution(batch: int, size: int, channels: int) -> ConvolutionWorkload:
    return ConvolutionWorkload(
        batch=batch, in_height=size, in_width=size, in_channels=channels,
        out_height=size, out_width=size, out_channels=channels, kernel_height=3, kernel_width=3,
        stride_height=1, stride_width=1, dilation_height=1, dilation_width=1,
        pad_top=1, pad_left=1, groups=1, lanes=16, arithmetic="float32", data_layout="NHWC",
    )  # fmt: skip


class Known:
    """A lookup that remembers the batches it was asked for."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def find(self, workload: Hashable, spec: TargetSpec) -> str | None:
        assert isinstance(workload, ConvolutionWorkload)
        self.batches.append(workload.batch)
        return "winograd2" if workload.in_height == 7 else None


def test_the_algorithm_is_that_of_the_batch_asked_for() -> None:
    spec = get_target("x86-64-v4")
    known = Known()
    lookup = ForBatch(known, ConvolutionAlgorithms(), batch=1, bound=8)
    assert lookup.find(convolution(8, 7, 64), spec) == "winograd2"
    small = convolution(8, 4, 128)
    rule = ConvolutionAlgorithms().by_rule
    assert lookup.find(small, spec) == rule(convolution(1, 4, 128), spec) == DIRECT
    assert rule(small, spec) != DIRECT
    assert known.batches == [1, 1]
    lookup.find(convolution(5, 7, 64), spec)  # not of the batch
    assert known.batches == [1, 1, 5]


def test_blocks_of_tiles_stay_within_an_image() -> None:
    match = Match(WinogradWorkload(convolution(8, 28, 64), 4), 0, 0)  # 49 tiles each
    decisions = {"tiles": 98, "rows": 7, "vectors": 2, "chunks": 1}
    first = WinogradTemplate().entries_first
    assert first(match, decisions) == {**decisions, "tiles": 49}
    assert first(match, {**decisions, "tiles": 30})["tiles"] == 25
    few = Match(WinogradWorkload(convolution(8, 4, 64), 4), 0, 0)  # one tile each
    assert first(few, decisions) == decisions


def test_rows_stand_outside_of_columns() -> None:
    decisions = {"rows": 4, "vectors": 2, "columns_outer": 1, "prefetch": 1}
    first = MatmulTemplate().entries_first(Match(None, 0, 0), decisions)
    assert first == {"rows": 4, "vectors": 2, "columns_outer": 0, "prefetch": 0}
