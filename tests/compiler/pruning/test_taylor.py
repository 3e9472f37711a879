"""Taylor importance against differences of the loss."""

from __future__ import annotations

import numpy as np
import pytest

from tinsmith.compiler.calibration import open_calibration
from tinsmith.compiler.demo import IMAGES, MODEL
from tinsmith.compiler.evaluate.accuracy import LabelledImages
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pruning.pruner import readable
from tinsmith.compiler.pruning.taylor import taylor_scores
from tinsmith.passes.prune import find_groups

torch = pytest.importorskip("torch")

from tinsmith.passes.prune.autograd.graph import TorchGraph  # noqa: E402

SIGNATURE = {"image": ((1, 1, 28, 28), "float32")}


def test_the_score_is_the_squared_slope_of_the_loss() -> None:
    images = LabelledImages.read(IMAGES).images[:40, None].astype("float32") / np.float32(255)
    module = readable(import_onnx(MODEL, {"image": (1, 1, 28, 28)}).module)
    groups = find_groups(module)
    group = groups.prunable[1]
    scores = taylor_scores(module, groups, groups.prunable, open_calibration(images, SIGNATURE))
    assert {len(scores[g.index]) == g.units for g in groups.prunable} == {True}

    graph = TorchGraph(module).double()
    with torch.no_grad():
        classes = graph(torch.tensor(images).double())["gv"].argmax(1)

    def loss(unit: int, factor: float) -> float:
        changed = TorchGraph(module).double()
        with torch.no_grad():
            for member in group.role("produces"):
                values = changed.get_parameter(f"c{member.constant}")
                where = [slice(None)] * values.ndim
                where[member.axis] = torch.tensor(member.indices[unit])
                values[tuple(where)] *= factor
            rows = changed(torch.tensor(images).double())["gv"]
            return float(torch.nn.functional.cross_entropy(rows, classes))

    for unit in (int(scores[group.index].argmax()), 0):
        slope = (loss(unit, 1.001) - loss(unit, 0.999)) / 0.002
        assert scores[group.index][unit] == pytest.approx(slope**2, rel=0.02, abs=1e-9)
