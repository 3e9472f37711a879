"""The demo network, pruned: smaller, faster to read, and computing what its graph says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tinsmith
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.demo import IMAGES, MODEL
from tinsmith.compiler.errors import ConfigError, InputError, ModelError
from tinsmith.compiler.evaluate.accuracy import LabelledImages
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.compiler.pruning.pruner import Pruner
from tinsmith.compiler.pruning.report import PruneReport
from tinsmith.compiler.workshop import workshop
from tinsmith.passes.prune import find_groups
from tinsmith.targets.registry import get_target

SHAPE = {"image": (1, 1, 28, 28)}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """The demo's test images as the network takes them, float32 `[1000, 1, 28, 28]`."""
    return LabelledImages.read(IMAGES).images[:, None].astype("float32") / np.float32(255)


@pytest.fixture(scope="module")
def imported():
    return import_onnx(MODEL, SHAPE)


def prune(imported, target: str = "native", **options):
    """The pruned module and the report."""
    signature = {"image": (SHAPE["image"], "float32")}
    pruner = Pruner(
        PruneConfig(**options),
        get_target(target),
        signature,
        imported.domains,
        workshop(CompileConfig(threads=1), get_target(target)),
    )
    module = pruner(imported.module)
    assert pruner.report is not None
    return module, pruner.report


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray):
    """Compiled at ratio 0.3, judged on other samples than it was recovered with."""
    options = PruneConfig(
        ratio=0.3,
        calibration=images[:150],
        evaluation=images[150:650],
        labels=LabelledImages.read(IMAGES).labels[150:650],
    )
    return tinsmith.compile_to(
        MODEL,
        tmp_path_factory.mktemp("pruned") / "module",
        shapes=SHAPE,
        pruning=options,
        runner=False,
        static_library=False,
        threads=1,
    )


def test_the_module_is_smaller_and_computes_the_pruned_graph(compiled) -> None:
    report = compiled.pruning
    lanes = get_target("native").float_lanes
    for group in report.groups:
        kept = group.before if group.reason == "is a graph output" else 0.7 * group.before
        assert group.after == min(group.before, math.ceil(kept / lanes) * lanes), group
    assert report.params[1] < 0.75 * report.params[0]
    # Of 32 channels 30 % are less than a vector of 16: nothing goes there.
    assert report.flops[1] < (0.57 if lanes == 8 else 0.79) * report.flops[0]
    assert compiled.differences[0].relative < 1e-4
    assert compiled.reference == "the pruned graph"


def test_recovery_wins_back_what_shrinking_lost(compiled) -> None:
    report, [step] = compiled.pruning, compiled.pruning.steps
    assert step.layers_solved > 5
    assert report.agreement == step.agreement > step.shrunk_agreement
    assert report.top1 > report.float_top1 - 0.05
    assert report.evaluated_samples == 500


def test_the_report_is_in_the_manifest(compiled) -> None:
    manifest = json.loads((compiled.path / "manifest.json").read_text())
    read = PruneReport.from_dict(manifest["measured"]["pruning"])
    assert replace(read, options={}) == replace(compiled.pruning, options={})
    assert manifest["config"]["pruning"]["ratio"] == 0.3
    assert compiled.pruning.speedup > 0
    assert "of the parameters" in compiled.pruning.summary()


def test_without_data_weights_decide_and_nothing_is_recovered(imported) -> None:
    module, report = prune(imported, target="cortex-a76", ratio=0.5)
    assert (report.criterion, report.recovery, report.agreement) == ("l2", "none", None)
    assert [g.after for g in report.groups if not g.reason] == [16, 16, 16, 32, 32, 32, 48, 48]
    assert any("without data" in note for note in report.notes)
    assert any("another machine" in note for note in report.notes)
    assert [group.units for group in find_groups(module)] == [g.after for g in report.groups]


@pytest.mark.parametrize("goal", ["flops", "params"])
def test_a_budget_is_kept_and_nearly_used_up(imported, goal: str) -> None:
    _, report = prune(imported, target="cortex-a76", **{goal: 0.5})
    before, after = getattr(report, goal)
    assert 0.4 * before < after <= 0.5 * before
    # Not all groups lose the same share.
    assert len({group.after / group.before for group in report.groups if not group.reason}) > 1


def test_steps_lead_to_the_same_widths_as_one(imported) -> None:
    _, report = prune(imported, target="cortex-a76", ratio=0.5, steps=2)
    assert len(report.steps) == 2
    assert report.steps[0].params > report.steps[1].params
    assert [g.after for g in report.groups if not g.reason] == [16, 16, 16, 32, 32, 32, 48, 48]


@pytest.mark.parametrize("criterion", ["l1", "geometric-median", "random", "batch-norm"])
def test_every_criterion_on_weights_scores_all_groups(imported, criterion: str) -> None:
    options = {"target": "cortex-a76", "ratio": 0.3, "allocation": "global"}
    if criterion == "batch-norm" and "batch_norm" not in imported.module.script(show_meta=False):
        with pytest.raises(ModelError, match="no batch normalisation"):
            prune(imported, criterion=criterion, **options)
        return
    _, report = prune(imported, criterion=criterion, **options)
    assert 0.5 < report.channels < 0.9


def test_a_group_may_be_kept_whole(imported) -> None:
    _, report = prune(imported, target="cortex-a76", ratio=0.5, keep=("stem_conv",))
    assert {g.name: g.after for g in report.groups}["stem_conv"] == 32


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"flops": 0.001}, ConfigError, "cannot be reached; with all groups at their narrowest"),
        ({"ratio": 0.5, "keep": ("nothing",)}, ConfigError, "--keep-group nothing"),
        ({"ratio": 0.5, "calibration": np.zeros((4, 3, 28, 28))}, InputError, "image"),
    ],
)
def test_user_errors_are_one_line(imported, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        prune(imported, target="cortex-a76", **options)
    assert "\n" not in str(caught.value)


def test_a_model_with_nothing_to_prune_is_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    node = helper.make_node("Relu", ["image"], ["y"])
    kind = [helper.make_tensor_value_info(n, TensorProto.FLOAT, SHAPE["image"]) for n in "xy"]
    kind[0].name = "image"
    model = helper.make_model(helper.make_graph([node], "relu", kind[:1], kind[1:]))
    with pytest.raises(ModelError, match="nothing to prune"):
        prune(import_onnx(model), ratio=0.3)


def test_the_width_under_a_spelled_out_layer_normalisation_is_pruned() -> None:
    def values(*shape: int) -> np.ndarray:
        return np.random.default_rng(len(shape)).standard_normal(shape).astype("float32")

    def node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(kind, inputs.split(), [output], **attributes)

    constants = {"w": values(16, 32), "g": values(32), "b": values(32), "v": values(32, 4)}
    constants["e"] = np.float32(1e-5)
    graph = helper.make_graph(
        [
            node("MatMul", "x w", "a"),
            node("ReduceMean", "a", "m", axes=[-1]),
            node("Sub", "a m", "d"),
            node("Mul", "d d", "dd"),
            node("ReduceMean", "dd", "s", axes=[-1]),
            node("Add", "s e", "se"),
            node("Sqrt", "se", "r"),
            node("Div", "d r", "n"),
            node("Mul", "n g", "ng"),
            node("Add", "ng b", "nb"),
            node("MatMul", "nb v", "y"),
        ],
        "normalised",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 6, 16))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imported = import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    pruner = Pruner(
        PruneConfig(ratio=0.5, criterion="l2", alignment=1),
        get_target("native"),
        imported.signature,
        imported.domains,
        workshop(CompileConfig(threads=1), get_target("native")),
    )
    pruner(imported.module)
    assert pruner.report is not None
    assert [(g.before, g.after) for g in pruner.report.groups if not g.reason] == [(32, 16)]
