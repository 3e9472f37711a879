"""What a pruning reports is of samples that it has learned nothing from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import tvm_ffi
from onnx import TensorProto, helper, numpy_helper

import tinsmith
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.demo import IMAGES, MODEL
from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.evaluate.accuracy import LabelledImages
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.compiler.pruning.pruner import Pruner
from tinsmith.compiler.pruning.report import PruneReport
from tinsmith.compiler.workshop import workshop
from tinsmith.targets.registry import get_target

SHAPE = {"image": (1, 1, 28, 28)}
SETTINGS = {"shapes": SHAPE, "runner": False, "static_library": False, "threads": 1}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return LabelledImages.read(IMAGES).images[:, None].astype("float32") / np.float32(255)


def prune(imported, **options) -> tuple[object, PruneReport]:
    config = PruneConfig(**options)
    spec = get_target("cortex-a76")  # nothing is timed
    here = workshop(CompileConfig(threads=1), spec)
    pruner = Pruner(config, spec, imported.signature, imported.domains, here)
    module = pruner(imported.module)
    assert pruner.report is not None
    return module, pruner.report


@pytest.mark.slow
def test_the_headline_is_that_of_the_held_out_samples(images: np.ndarray, tmp_path: Path) -> None:
    options = PruneConfig(ratio=0.5, calibration=images[:80], cross_fit=False)
    report = tinsmith.compile_to(MODEL, tmp_path / "pruned", pruning=options, **SETTINGS).pruning
    tinsmith.compile_to(MODEL, tmp_path / "whole", **SETTINGS)
    held_out = images[3:80:4]
    chosen = []
    for name in ("whole", "pruned"):
        with tinsmith.load(tmp_path / name, threads=1) as module:
            chosen.append([module.run([image[None]])[0].argmax() for image in held_out])
    assert report.agreement == np.mean(np.equal(*chosen))
    assert report.evaluated_samples == 20 and "held-out" in report.evaluated_on
    assert any("agreement rests on 20 held-out samples" in note for note in report.notes)


def narrow_model() -> onnx.ModelProto:
    """A block that widens 12 channels to 24, twice, and adds what it computes to them."""

    generator = np.random.default_rng(0)

    def values(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype("float32")

    constants = {"w0": values(12, 3, 1, 1), "fc": values(12, 5)}
    nodes = [helper.make_node("Conv", ["x", "w0"], ["s0"])]
    for block in range(2):
        wide, narrow = f"wide{block}", f"narrow{block}"
        constants |= {wide: values(24, 12, 1, 1), narrow: values(12, 24, 1, 1)}
        nodes += [
            helper.make_node("Conv", [f"s{block}", wide], [f"a{block}"]),
            helper.make_node("Relu", [f"a{block}"], [f"r{block}"]),
            helper.make_node("Conv", [f"r{block}", narrow], [f"b{block}"]),
            helper.make_node("Add", [f"b{block}", f"s{block}"], [f"s{block + 1}"]),
        ]
    nodes += [
        helper.make_node("GlobalAveragePool", ["s2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "fc"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "narrow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 6, 6))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.fixture(scope="module")
def narrow():
    return import_onnx(narrow_model())


@pytest.mark.slow
def test_nothing_is_learned_from_what_is_held_out(narrow) -> None:
    generator = np.random.default_rng(0)
    data = generator.standard_normal((20, 3, 6, 6)).astype("float32")
    other = data.copy()
    other[3::4] = 5 * generator.standard_normal(other[3::4].shape)
    options = {"ratio": 0.5, "alignment": 1, "cross_fit": False}
    first, report = prune(narrow, calibration=data, **options)
    second, _ = prune(narrow, calibration=other, **options)
    assert report.steps[0].layers_solved > 0 and report.evaluated_samples == 5
    assert tvm_ffi.structural_equal(first, second, map_free_vars=True)


# Nothing is solved for: what is told of the data does not depend on it.
CHEAP = {"ratio": 0.5, "alignment": 1, "criterion": "l2", "recovery": "batch-norm"}


def test_few_samples_have_no_headline(narrow) -> None:
    data = np.random.default_rng(0).standard_normal((6, 3, 6, 6)).astype("float32")
    _, report = prune(narrow, calibration=data, **CHEAP)
    assert report.agreement is None
    assert any("too few to hold any out" in note for note in report.notes)


def test_data_that_make_no_sense_are_warned_of(narrow) -> None:
    _, report = prune(narrow, calibration=np.zeros((8, 3, 6, 6), np.float32), **CHEAP)
    assert any("input x is zero in all samples" in note for note in report.notes)


def test_every_group_that_stays_whole_says_why(narrow) -> None:
    _, report = prune(narrow, ratio=0.1)
    reasons = {group.name: group.reason for group in report.groups if group.before > 5}
    assert len(reasons) == 3 and all(group.before == group.after for group in report.groups)
    assert (
        sorted(reason.split(" of ")[0] for reason in reasons.values())
        == [
            "its share is less than a step",
        ]
        * 3
    )
    assert any("weight 0.25" in reason for reason in reasons.values())
    assert any(note.startswith("warning: nothing was pruned") for note in report.notes)
    _, report = prune(narrow, ratio=0.1, alignment=16)
    told = {g.before: g.reason for g in report.groups if g.before > 5}
    assert told[12] == "has 12 units, and widths are multiples of 16 (--prune-alignment)"


@pytest.mark.parametrize(
    ("residual", "widths"), [("auto", (11, 12)), (1.0, (6, 12)), (0.0, (12, 12))]
)
def test_residual_streams_shrink_as_they_are_told(
    narrow, residual: float | str, widths: tuple[int, int]
) -> None:
    _, report = prune(narrow, ratio=0.5, alignment=1, residual=residual)
    after = {group.before: group.after for group in report.groups if group.before > 5}
    assert (after[12], after[24]) == widths
    if residual == 0.0:
        (told,) = (group.reason for group in report.groups if group.before == 12)
        assert "--prune-residual" in told


@pytest.mark.parametrize("value", [-0.1, 1.5, "much", True])
def test_what_residual_cannot_be(value: object) -> None:
    with pytest.raises(ConfigError, match="--prune-residual"):
        PruneConfig(ratio=0.5, residual=value)
