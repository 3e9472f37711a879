"""Tensors of a graph on all samples, part by part."""

from __future__ import annotations

import numpy as np

from tinsmith.compiler.calibration import open_calibration
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.demo import IMAGES, MODEL
from tinsmith.compiler.evaluate.accuracy import LabelledImages
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pruning.frontier import Arrays, Frontier
from tinsmith.compiler.pruning.observed import ObservedGraph
from tinsmith.compiler.pruning.pruner import readable
from tinsmith.compiler.workshop import workshop
from tinsmith.passes.prune.recovery.layers import find_layers
from tinsmith.targets.registry import get_target


def test_arrays_go_to_files_when_there_is_no_room() -> None:
    first, second = np.arange(4.0), np.arange(5.0)
    with Arrays(room=40) as arrays:
        kept = [arrays.kept(array) for array in (first, second)]
        assert not isinstance(kept[0], np.memmap) and isinstance(kept[1], np.memmap)
        path = kept[1].filename
        first += 1
        np.testing.assert_array_equal(kept[0], np.arange(4.0))
        np.testing.assert_array_equal(kept[1], second)
        arrays.dropped(kept[1])
        assert not path.exists()
        arrays.dropped(kept[0])
        assert not isinstance(arrays.kept(second), np.memmap)


def test_parts_compute_what_the_whole_graph_does() -> None:
    shape = {"image": (1, 1, 28, 28)}
    module = readable(import_onnx(MODEL, shape).module)
    images = LabelledImages.read(IMAGES).images[:3, None].astype("float32") / np.float32(255)
    source = open_calibration(images, {"image": (shape["image"], "float32")})
    layers = find_layers(module)
    wanted = [layers[len(layers) // 2].data, layers[-1].data, layers[-1].target]
    here = workshop(CompileConfig(threads=1), get_target("native"))
    with (
        Arrays(room=1 << 16) as arrays,
        ObservedGraph(module, here, wanted) as whole,
    ):
        frontier = Frontier(source, here, arrays)
        for name in wanted:
            frontier.advance(module, [name])
            for sample, found in zip(source, frontier, strict=True):
                expected = whole.run(sample)[name]
                np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4)
        # What nothing reads any more is gone.
        assert all(set(found) == {wanted[-1]} for found in frontier)
