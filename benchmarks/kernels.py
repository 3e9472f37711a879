"""Kernels that move more data than they compute, beside ONNX Runtime, one operator at a time.

Each case is a small ONNX model, compiled untuned. `us` is the median of the whole
module (both contestants take turns in bursts), `kernel us` the time of its kernels
alone, `GB/s` their compulsory traffic divided by that time. Run as
`python benchmarks/kernels.py [--runs 200] [--threads 2] [NAME ...]`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tinsmith import CompileConfig, compile_to, load
from tinsmith.compiler.evaluate.bench import bench

OPSET = 18


@dataclass(frozen=True)
class Case:
    """Inputs `x0`, `x1`, ... of the given shapes; `nodes` compute `y` from them."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    nodes: tuple[tuple[str, str, str, dict[str, object]], ...]
    constants: tuple[tuple[str, np.ndarray], ...] = ()

    def model(self) -> onnx.ModelProto:
        """The ONNX model of this case."""
        nodes = [
            helper.make_node(op, inputs.split(" "), [outputs], **attributes)
            for op, inputs, outputs, attributes in self.nodes
        ]
        inputs = [
            helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape)
            for i, shape in enumerate(self.shapes)
        ]
        outputs = [onnx.ValueInfoProto(name="y")]
        weights = [numpy_helper.from_array(value, name) for name, value in self.constants]
        graph = helper.make_graph(nodes, self.name, inputs, outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = 9
        return onnx.shape_inference.infer_shapes(model)


def one(name: str, op: str, *shapes: tuple[int, ...], **attributes: object) -> Case:
    """A case of a single operator on the inputs."""
    names = " ".join(f"x{i}" for i in range(len(shapes)))
    return Case(name, shapes, ((op, names, "y", attributes),))


def _f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def _i64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def _ones(size: int) -> np.ndarray:
    return np.ones(size, dtype=np.float32)


CASES = (
    one("add", "Add", (1, 32, 112, 112), (1, 32, 112, 112)),
    one("relu-small", "Relu", (1, 1280, 7, 7)),
    one("sigmoid", "Sigmoid", (1, 96, 56, 56)),
    one("tanh", "Tanh", (1, 96, 56, 56)),
    Case("silu", ((1, 96, 112, 112),), (("Sigmoid", "x0", "s", {}), ("Mul", "x0 s", "y", {}))),
    Case(
        "gelu",
        ((1, 128, 1536),),
        (
            ("Div", "x0 r", "a", {}),
            ("Erf", "a", "b", {}),
            ("Add", "b one", "c", {}),
            ("Mul", "x0 c", "d", {}),
            ("Mul", "d half", "y", {}),
        ),
        (("r", _f32(2**0.5)[0:1]), ("one", _f32(1)), ("half", _f32(0.5))),
    ),
    one("softmax-attention", "Softmax", (12, 128, 128), axis=-1),
    Case(
        "softmax-masked",
        ((12, 128, 128), (1, 1, 128)),
        (("Mul", "x0 s", "a", {}), ("Add", "a x1", "b", {}), ("Softmax", "b", "y", {"axis": -1})),
        (("s", _f32(0.125)),),
    ),
    one("softmax-channels", "Softmax", (1, 21, 64, 64), axis=1),
    one("log-softmax", "LogSoftmax", (16, 1000), axis=-1),
    Case(
        "layer-norm",
        ((1, 128, 384),),
        (("LayerNormalization", "x0 g b", "y", {"axis": -1}),),
        (("g", _ones(384)), ("b", _ones(384))),
    ),
    Case(
        "layer-norm-residual",
        ((1, 128, 768), (1, 128, 768)),
        (("Add", "x0 x1", "a", {}), ("LayerNormalization", "a g b", "y", {"axis": -1})),
        (("g", _ones(768)), ("b", _ones(768))),
    ),
    Case(
        "instance-norm",
        ((1, 64, 56, 56),),
        (("InstanceNormalization", "x0 g b", "y", {}),),
        (("g", _ones(64)), ("b", _ones(64))),
    ),
    one("global-average", "GlobalAveragePool", (1, 1280, 7, 7)),
    Case(
        "mean-spatial-nhwc",
        ((1, 28, 28, 256),),
        (("ReduceMean", "x0 axes", "y", {"keepdims": 0}),),
        (("axes", _i64(1, 2)),),
    ),
    Case(
        "sum-last",
        ((512, 1000),),
        (("ReduceSum", "x0 axes", "y", {"keepdims": 0}),),
        (("axes", _i64(1)),),
    ),
    Case(
        "max-first",
        ((512, 1000),),
        (("ReduceMax", "x0 axes", "y", {"keepdims": 0}),),
        (("axes", _i64(0)),),
    ),
    one("argmax", "ArgMax", (16, 1000), axis=1),
    one("transpose-2d", "Transpose", (1000, 1000), perm=[1, 0]),
    one("transpose-image", "Transpose", (1, 3, 224, 224), perm=[0, 2, 3, 1]),
    one("transpose-nhwc", "Transpose", (1, 64, 56, 56), perm=[0, 2, 3, 1]),
    one("transpose-heads", "Transpose", (1, 128, 12, 32), perm=[0, 2, 1, 3]),
    one("transpose-keys", "Transpose", (1, 128, 12, 32), perm=[0, 2, 3, 1]),
    one("concat-channels", "Concat", (1, 64, 56, 56), (1, 32, 56, 56), axis=1),
    one("concat-last", "Concat", (1, 28, 28, 96), (1, 28, 28, 33), axis=3),
    Case(
        "pad",
        ((1, 3, 224, 224),),
        (("Pad", "x0 pads", "y", {}),),
        (("pads", _i64(0, 0, 3, 3, 0, 0, 3, 3)),),
    ),
    Case(
        "resize-nearest",
        ((1, 64, 28, 28),),
        (("Resize", "x0  scales", "y", {"mode": "nearest", "nearest_mode": "floor",
          "coordinate_transformation_mode": "asymmetric"}),),
        (("scales", _f32(1, 1, 2, 2)),),
    ),
    Case(
        "resize-linear",
        ((1, 64, 28, 28),),
        (("Resize", "x0  scales", "y", {"mode": "linear"}),),
        (("scales", _f32(1, 1, 2, 2)),),
    ),
    Case(
        "embedding",
        ((1, 64),),
        (("Gather", "table ids", "e", {"axis": 0}), ("Add", "e x0", "y", {})),
        (("table", np.ones((30522, 64), np.float32)), ("ids", np.arange(0, 12800, 100))),
    ),
)  # fmt: skip


def run(case: Case, runs: int, threads: int) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{case.name}.onnx"
        onnx.save(case.model(), path)
        config = CompileConfig(threads=threads, static_library=False, runner=False)
        report = compile_to(path, Path(folder) / "module", config=config)
        race = bench(report.path, path, runs, threads)
        module = load(report.path)
        module.threads = threads
        generator = np.random.default_rng(0)
        feed = {
            f"x{i}": generator.standard_normal(shape).astype(np.float32)
            for i, shape in enumerate(case.shapes)
        }
        module.profile(feed)
        steps = module.profile(feed, 50)
        kernels = report.manifest.kernels
        module.close()
    seconds = sum(step.seconds for step in steps)
    moved = sum(kernel.bytes for kernel in kernels)
    own = race.module.median * 1e3
    peer = next((t.median * 1e3 for t in race.timings if t.label == "ONNX Runtime"), float("nan"))
    templates = "+".join(kernel.template for kernel in kernels)
    shape = "x".join(map(str, case.shapes[0]))
    return (
        f"{case.name:20}{templates:24.24}{shape:>15}{own:>9.1f}{seconds * 1e6:>11.1f}"
        f"{moved / seconds / 1e9 if seconds else 0:>8.1f}{peer:>9.1f}{peer / own:>8.2f}"
    )


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="cases to time (default: all)")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print(
        f"{'case':20}{'templates':24}{'shape':>15}{'us':>9}{'kernel us':>11}{'GB/s':>8}"
        f"{'ORT us':>9}{'ratio':>8}"
    )
    # A process for each case: what one leaves behind (threads, caches) is not the next one's.
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for case in CASES:
            if not options.names or case.name in options.names:
                print(pool.apply(run, (case, options.runs, options.threads)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
