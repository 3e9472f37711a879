"""Distillation of the demo network while it is pruned, its samples, and what is refused."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from tinsmith.compiler.calibration import Preprocessing, open_calibration
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.demo import IMAGES, MODEL
from tinsmith.compiler.errors import ConfigError, InputError
from tinsmith.compiler.evaluate.accuracy import LabelledImages
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pruning.augmentation import Augmentation
from tinsmith.compiler.pruning.batches import batch_of
from tinsmith.compiler.pruning.config import PruneConfig
from tinsmith.compiler.pruning.distillation import Distiller
from tinsmith.compiler.pruning.pruner import Pruner, readable
from tinsmith.compiler.pruning.report import PruneReport
from tinsmith.compiler.workshop import workshop
from tinsmith.targets.registry import get_target

SIGNATURE = {"image": ((1, 1, 28, 28), "float32")}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """The demo's test images as the network takes them, float32 `[1000, 1, 28, 28]`."""
    return LabelledImages.read(IMAGES).images[:, None].astype("float32") / np.float32(255)


@pytest.fixture(scope="module")
def imported():
    return import_onnx(MODEL, {"image": (1, 1, 28, 28)})


def prune(imported, **options) -> PruneReport:
    pruner = Pruner(
        PruneConfig(recovery="distill", **options),
        get_target("native"),
        SIGNATURE,
        imported.domains,
        workshop(CompileConfig(threads=1), get_target("native")),
    )
    pruner(imported.module)
    assert pruner.report is not None
    return pruner.report


def test_the_student_agrees_more_and_the_report_says_so(imported, images: np.ndarray) -> None:
    pytest.importorskip("torch")
    report = prune(
        imported,
        ratio=0.6,
        criterion="l2",
        samples=30,
        calibration=images[:500],
        evaluation=images[500:],
        distill_minutes=1e6,
        distill_epochs=10,
        augment=("flip",),
    )
    told = report.distillation
    assert told is not None
    assert told.loss < told.loss_before
    # All of the data, less what is held out, in full batches of 64.
    assert (told.epochs, told.steps) == (10, 70)
    assert report.agreement > report.steps[0].shrunk_agreement
    assert "distilled for" in report.summary()
    assert PruneReport.from_dict(report.to_dict()).distillation == told


def test_what_cannot_be_distilled_is_refused(imported, images: np.ndarray) -> None:
    def distiller(data, **options) -> Distiller:
        config = PruneConfig(ratio=0.5, calibration=data, recovery="distill", **options)
        source = open_calibration(data, SIGNATURE)
        here = workshop(CompileConfig(), get_target("native"))
        return Distiller(config, imported.module, source, here)

    if importlib.util.find_spec("torch"):
        few = distiller(images[:7])
        with pytest.raises(InputError, match="at least 20 samples, there are 7"):
            few.distilled(readable(imported.module), {})
        with pytest.raises(ConfigError, match="--distill-alpha needs labels"):
            distiller(images[:30], distill_alpha=0.5)
    with pytest.raises(ConfigError, match="recovery by distill needs data"):
        PruneConfig(ratio=0.5, recovery="distill")
    with pytest.raises(ConfigError, match="--augment colour: choose from flip, crop, mixup"):
        PruneConfig(ratio=0.5, calibration=images, augment=("colour",))
    with pytest.raises(ConfigError, match="--augment mixup leaves no picture a class"):
        PruneConfig(ratio=0.5, calibration=images, augment=("mixup",), distill_alpha=0.5)
    for name, value in (("distill_minutes", 0), ("temperature", -1), ("distill_alpha", 1.5)):
        with pytest.raises(ConfigError, match=name.replace("_", ".")):
            PruneConfig(ratio=0.5, calibration=images, **{name: value})


def test_without_torch_one_line_says_what_to_install(
    imported, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else found(name)
    )
    with pytest.raises(ConfigError, match=r"needs PyTorch: pip install 'tinsmith\[torch\]'"):
        prune(imported, ratio=0.5, calibration=images[:30])


def test_pictures_are_flipped_and_shifted(images: np.ndarray) -> None:
    source = open_calibration(images[:4], SIGNATURE)
    generator = np.random.default_rng(0)
    picture = images[:1]
    sample = (3, (picture,), None, 6)
    seen = set()
    flip = Augmentation(["flip"], source, Preprocessing())
    for _ in range(20):
        _, (array,), _, key = flip(sample, generator)
        flipped = key == 7
        np.testing.assert_array_equal(array, picture[..., ::-1] if flipped else picture)
        seen.add(key)
    assert seen == {6, 7}
    crop = Augmentation(["crop"], source, Preprocessing())
    for _ in range(20):
        _, (array,), _, key = crop(sample, generator)
        assert key is None and array.shape == picture.shape
        inner = np.pad(picture, ((0, 0), (0, 0), (4, 4), (4, 4)))
        assert any(
            np.array_equal(array, inner[:, :, i : i + 28, j : j + 28])
            for i in range(9)
            for j in range(9)
        )
    assert Augmentation([], source, Preprocessing())(sample, generator) is sample
    batch = batch_of([sample, (0, (images[1:2],), None, 0)])
    assert crop.mixed(batch, generator) is batch
    (mixed,) = Augmentation(["mixup"], source, Preprocessing()).mixed(batch, generator).inputs
    first, second = mixed - batch.inputs[0]
    other = images[1] - picture[0]
    share = float(first.sum() / other.sum())
    assert 0 <= share <= 0.5 and mixed.dtype == np.float32
    np.testing.assert_allclose(first, share * other, atol=1e-6)
    assert np.abs(second).max() <= 0.5 * np.abs(other).max() + 1e-6
    flat = open_calibration(np.zeros((4, 5), "float32"), {"x": ((1, 5), "float32")})
    with pytest.raises(ConfigError, match="input x of shape"):
        Augmentation(["flip"], flat, Preprocessing())
