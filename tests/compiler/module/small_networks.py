"""Small Relax models that need no templates: TVM's own definitions, fused, unscheduled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import relax
from tvm.ir import IRModule

from tinsmith.compiler.module.write.lowered import LoweredModel
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.x86.specs import X86_64_V3

Shapes = Sequence[tuple[tuple[int, ...], str]]
# Every x86-64 machine that can run the tests has it, whatever else it has.
SPEC = X86_64_V3


def fused(module: IRModule) -> IRModule:
    """`module` with every operator turned into a PrimFunc, neighbours fused."""
    passes = [
        relax.backend.DispatchSampling(),
        relax.backend.DispatchSortScan(),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
    ]
    with tvm.target.Target("llvm"):
        return tvm.transform.Sequential(passes)(module)


def graph(build: Callable[..., relax.Expr], inputs: Shapes) -> IRModule:
    """A Relax module whose `main` returns `build(*inputs)`."""
    builder = relax.BlockBuilder()
    variables = [
        relax.Var(f"x{i}", relax.TensorType(shape, dtype))
        for i, (shape, dtype) in enumerate(inputs)
    ]
    with builder.function("main", variables):
        with builder.dataflow():
            output = builder.emit_output(build(*variables))
        builder.emit_func_output(output)
    return builder.get()


def lowered(
    build: Callable[..., relax.Expr], inputs: Shapes, outputs: int = 1, name: str = "small",
    spec: TargetSpec = SPEC,
) -> LoweredModel:  # fmt: skip
    """`build` as the module writer's input; inputs x0, x1, ..., outputs y0, y1, ..."""
    return LoweredModel(
        fused(graph(build, inputs)),
        spec,
        tuple(f"x{i}" for i in range(len(inputs))),
        tuple(f"y{i}" for i in range(outputs)),
        source_name=name,
    )


def network(x: relax.Expr) -> relax.Expr:
    """(1, 3, 16, 16) -> convolution, relu, reshape, matmul, softmax: (8, 10), and the features."""
    generator = np.random.default_rng(0)

    def weight(*shape: int) -> relax.Constant:
        return relax.const(generator.standard_normal(shape).astype("float32"))

    convolved = relax.op.nn.conv2d(x, weight(8, 3, 3, 3), padding=1)
    rows = relax.op.reshape(relax.op.nn.relu(relax.op.add(convolved, weight(1, 8, 1, 1))), (8, 256))
    scores = relax.op.nn.softmax(relax.op.matmul(rows, weight(256, 10)))
    return relax.Tuple([scores, rows])


NETWORK_INPUT = (((1, 3, 16, 16), "float32"),)


def network_model(name: str = "small", spec: TargetSpec = SPEC) -> LoweredModel:
    """`network` as the module writer's input."""
    return lowered(network, NETWORK_INPUT, outputs=2, name=name, spec=spec)


def random_inputs(inputs: Shapes, seed: int = 0) -> list[np.ndarray]:
    """Normal floats; small non-negative integers (they may be indices); random booleans."""
    generator = np.random.default_rng(seed)
    arrays = []
    for shape, dtype in inputs:
        if "float" in dtype:
            arrays.append(generator.standard_normal(shape).astype(dtype))
        else:
            arrays.append(generator.integers(0, 2 if dtype == "bool" else 3, shape).astype(dtype))
    return arrays


def reference(model: LoweredModel, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs that TVM's own virtual machine computes, built for the same CPU."""
    target = tvm.target.Target(model.spec.tvm_target_config())
    machine = relax.VirtualMachine(tvm.compile(model.module, target=target), tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(array) for array in arrays))
    parts = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
    return [part.numpy() for part in parts]
