"""The groups of a trained residual network, with batch normalisations and without."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest
from graph_checks import execute, random_inputs
from prune_checks import drop, free

from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pruning.pruner import readable
from tinsmith.passes.graph import DecomposeConvolutions, FoldBatchNorm, FoldConstants
from tinsmith.passes.prune import find_groups, shrink, zero


@pytest.mark.parametrize("folded", [False, True], ids=["as imported", "folded"])
def test_removed_is_zeroed(folded: bool) -> None:
    model = files("tinsmith.compiler.demo") / "fashion_resnet.onnx"
    module = readable(import_onnx(str(model)).module)
    if folded:
        for step in (FoldBatchNorm(), DecomposeConvolutions(), FoldConstants()):
            module = step(module)
    groups = free(module)
    keep = {group.index: drop(group, share=0.3) for group in groups}
    # All widths but that of the scores.
    assert len(groups) == len(find_groups(module)) - 1
    smaller = shrink(module, keep)
    assert [group.units for group in find_groups(smaller).prunable] == [
        len(keep[group.index]) for group in groups
    ]
    inputs = random_inputs(module)
    expected, actual = (execute(each, inputs)[0] for each in (zero(module, keep), smaller))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
