"""Weights that are zero, alone and after channels went: reported, and smaller when packed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tinsmith
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.demo import IMAGES, MODEL
from tinsmith.compiler.errors import ConfigError, ModelError
from tinsmith.compiler.evaluate.accuracy import LabelledImages
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.compiler.pruning.pruner import Pruner, readable
from tinsmith.compiler.pruning.report import PruneReport
from tinsmith.compiler.workshop import workshop
from tinsmith.passes.prune.sparsify import zeros_by_layer
from tinsmith.targets.registry import get_target

SHAPE = {"image": (1, 1, 28, 28)}


@pytest.fixture(scope="module")
def imported():
    return import_onnx(MODEL, SHAPE)


def prune(imported, target: str = "cortex-a76", **options):
    """The sparse graph and the report."""
    pruner = Pruner(
        PruneConfig(**options),
        get_target(target),
        {"image": (SHAPE["image"], "float32")},
        imported.domains,
        workshop(CompileConfig(threads=1), get_target(target)),
    )
    module = pruner(imported.module)
    assert pruner.report is not None
    return module, pruner.report


def compiled(folder: Path, pruning: PruneConfig | None):
    return tinsmith.compile_to(
        MODEL, folder, shapes=SHAPE, pruning=pruning, runner=False, static_library=False, threads=1
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    return compiled(tmp_path_factory.mktemp("whole") / "module", None)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory):
    """Four of five weights zero, judged on labelled images."""
    labelled = LabelledImages.read(IMAGES)
    images = labelled.images[:200, None].astype("float32") / np.float32(255)
    options = PruneConfig(sparsity=0.8, calibration=images, labels=labelled.labels[:200])
    return compiled(tmp_path_factory.mktemp("sparse") / "module", options)


def test_a_sparse_module_computes_its_graph_and_packs_smaller(
    whole, sparse, tmp_path: Path
) -> None:
    assert sparse.differences[0].relative < 1e-4
    dense_bytes = tinsmith.pack(whole.path, tmp_path / "whole.tar.zst")
    sparse_bytes = tinsmith.pack(sparse.path, tmp_path / "sparse.tar.zst")
    weights = sparse.manifest.weights_bytes
    assert dense_bytes > 0.7 * weights
    assert sparse_bytes < 0.5 * weights
    with tinsmith.load(tmp_path / "sparse.tar.zst") as module:
        golden = module.golden()
        assert golden is not None
        np.testing.assert_allclose(module.run(golden.inputs)[0], golden.outputs[0], atol=1e-4)


def test_no_convolution_hides_its_zeros(sparse) -> None:
    assert not [step for step in sparse.manifest.steps if "winograd" in step]
    assert sparse.manifest.weights_bytes < 1.1 * 4 * sparse.pruning.params[1]


def test_the_report_tells_zeros_accuracy_and_that_nothing_is_faster(sparse) -> None:
    report = sparse.pruning
    assert 0.75 < report.sparsity <= 0.8
    assert {layer.zeros for layer in report.sparse_layers if layer.weights < 2048} == {0}
    assert report.agreement < 1 and 0 < report.top1 < report.float_top1
    assert report.evaluated_samples == 200
    assert report.speedup is None and report.params[0] == report.params[1]
    assert any("no faster: dense kernels" in note for note in report.notes)
    assert not any("has seen" in note for note in report.notes)
    assert "of the weights zero" in report.summary()
    manifest = json.loads((sparse.path / "manifest.json").read_text())
    read = PruneReport.from_dict(manifest["measured"]["pruning"])
    assert replace(read, options={}) == replace(report, options={})


@pytest.mark.parametrize(("option", "share"), [("0.25", 0.25), ("2:4", 0.5), ("1:4", 0.75)])
def test_every_layer_has_its_share(imported, option: str, share: float) -> None:
    module, report = prune(imported, sparsity=option)
    for layer in report.sparse_layers:
        if layer.weights >= 2048:
            assert layer.zeros / layer.weights == pytest.approx(share, abs=0.02)
    told = {layer.name: (layer.weights, layer.zeros) for layer in report.sparse_layers}
    assert told == zeros_by_layer(module)
    assert report.goal == f"sparsity {option}"
    assert any("pass --calibration" in note for note in report.notes)


def test_a_magnitude_is_a_threshold(imported) -> None:
    _, report = prune(imported, sparsity="below:0.02")
    before = zeros_by_layer(readable(imported.module))
    assert 0 < report.sparsity < 1
    assert all(layer.zeros >= before[layer.name][1] for layer in report.sparse_layers)
    with pytest.raises(ModelError, match="--sparsity below:1e-30: no weight becomes zero"):
        prune(imported, sparsity="below:1e-30")


def test_channels_go_first(imported) -> None:
    _, report = prune(imported, ratio=0.5, sparsity=0.5)
    assert report.channels < 0.7 and len(report.steps) == 1
    layers = {layer.name: layer.weights for layer in report.sparse_layers}
    _, narrow = prune(imported, sparsity=0.5)
    whole = {layer.name: layer.weights for layer in narrow.sparse_layers}
    assert sum(layers.values()) < 0.6 * sum(whole.values())
    assert 0.4 < report.sparsity <= 0.5
    assert any("before single weights" in note for note in report.notes)
    assert not any("before single weights" in note for note in narrow.notes)
    assert "channels" in report.summary() and "weights zero" in report.summary()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0}, "--sparsity 0: expected a share between 0 and 1"),
        ({"sparsity": 1.0}, "--sparsity 1.0"),
        ({"sparsity": True}, "--sparsity True"),
        ({"sparsity": "half"}, "--sparsity half"),
        ({"sparsity": "4:4"}, "--sparsity 4:4"),
        ({"sparsity": "0:4"}, "--sparsity 0:4"),
        ({"sparsity": "2:4:8"}, "--sparsity 2:4:8"),
        ({"sparsity": "2:"}, "--sparsity 2:"),
        ({"sparsity": "below:-1"}, "--sparsity below:-1"),
        ({"sparsity": "below:nan"}, "--sparsity below:nan"),
        ({"sparsity": 0.5, "recovery": "distill"}, "pruning recovery distill: is for removing"),
        ({"sparsity": 0.5, "criterion": "l1"}, "pruning criterion l1: is for removing"),
        ({"sparsity": 0.5, "ratio": 0.3, "flops": 0.5}, "exactly one goal"),
    ],
)
def test_mistakes_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        PruneConfig(**options)
    assert "\n" not in str(caught.value)
