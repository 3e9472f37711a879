"""Quantised networks compute the same bits on every target (run under qemu-user-static)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tvm import tirx

from tinsmith.compiler.frontends.registry import import_model
from tinsmith.compiler.module.golden import GoldenVectors
from tinsmith.compiler.module.loader import load
from tinsmith.compiler.module.write.lowered import LoweredModel
from tinsmith.compiler.module.write.writer import write_module
from tinsmith.compiler.pipeline import QUANTIZED_BEFORE, lowering, quantization_passes
from tinsmith.passes.quantize.placement import observed_tensors
from tinsmith.targets.cpu.reproducible import is_reproducible
from tinsmith.targets.registry import backend_of, get_target
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.x86.specs import X86_64_V3

ARM64 = ["qemu-aarch64-static", "-cpu", "max"]
EMULATORS = {"cortex-a7": ["qemu-arm-static"], "cortex-a72": ARM64, "cortex-a76": ARM64}


def network() -> onnx.ModelProto:
    """Residual sums, bounds, padding of codes, activations, a concatenation and means."""
    generator = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {"zero": np.float32(0), "six": np.float32(6)}
    nodes: list[onnx.NodeProto] = []

    def add(operator: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"t{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def convolution(x: str, *shape: int, scale: float = 0.15, **attributes: object) -> str:
        name = f"w{len(nodes)}"
        weights[name] = (generator.standard_normal(shape) * scale).astype(np.float32)
        weights[f"{name}b"] = (generator.standard_normal(shape[0]) * scale).astype(np.float32)
        return add("Conv", x, name, f"{name}b", **attributes)

    same = [1, 1, 1, 1]
    first = add("Relu", convolution("x", 24, 3, 3, 3, pads=same, strides=[2, 2]))
    deep = convolution(first, 24, 1, 3, 3, scale=0.4, pads=same, group=24)
    total = add("Add", convolution(add("Clip", deep, "zero", "six"), 24, 24, 1, 1), first)
    gate = add("Mul", total, add("Sigmoid", total))
    wide = add("LeakyRelu", convolution(add("Tanh", gate), 40, 24, 3, 3, pads=same))
    more = add("Relu", add("Add", convolution(wide, 40, 40, 3, 3, pads=same), wide))
    pool = add("AveragePool", more, kernel_shape=[3, 3], pads=same, strides=[2, 2])
    both = add("Concat", pool, convolution(pool, 24, 40, 1, 1), axis=1)
    result = convolution(add("GlobalAveragePool", both), 10, 64, 1, 1)
    graph = helper.make_graph(
        nodes,
        "codes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 20, 20])],
        [helper.make_empty_tensor_value_info(result)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def lowered(spec: TargetSpec, formats: TargetSpec) -> LoweredModel:
    """The network in the number formats of one target, with the kernels of another."""
    imported = import_model(network())
    pipeline = lowering(spec)
    graph = pipeline.until(QUANTIZED_BEFORE).run(imported.module).module
    ranges = dict.fromkeys(observed_tensors(graph, backend_of(formats).formats), (-3.1, 5.3))
    steps = quantization_passes(formats, ranges)
    later = pipeline.since(QUANTIZED_BEFORE).with_steps(steps, before=QUANTIZED_BEFORE)
    report = later.run(graph)
    kernels = [f for f in report.fused.functions.values() if isinstance(f, tirx.PrimFunc)]
    assert kernels and all(map(is_reproducible, kernels))
    return LoweredModel(
        report.module, spec, ("x",), ("y",), kernels=report.kernels, source_name="codes"
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", EMULATORS)
def test_codes_are_the_same_to_the_last_bit(target: str, tmp_path: Path) -> None:
    emulator = EMULATORS[target]
    if shutil.which(emulator[0]) is None:
        pytest.skip(f"{emulator[0]} is not installed")
    x = np.random.default_rng(1).standard_normal((1, 3, 20, 20)).astype(np.float32)
    spec = get_target(target)
    outputs = []
    # In the formats of either target: unsigned activations here, signed ones there.
    for number, formats in enumerate((X86_64_V3, spec)):
        here = write_module(lowered(X86_64_V3, formats), tmp_path / f"{number}", forms=("shared",))
        with load(here.path) as module:
            outputs.append([value.copy() for value in module.run([x])])
    np.testing.assert_array_equal(*outputs)
    assert len(np.unique(outputs[0])) > 5
    golden = GoldenVectors((x,), tuple(outputs[0]), 0.0)
    write_module(lowered(spec, spec), tmp_path / "there", golden=golden, forms=("runner",))
    done = subprocess.run(
        [*emulator, tmp_path / "there" / "tinsmith-run", "verify"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "allowed 0: ok" in done.stdout
