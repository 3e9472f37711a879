"""Builds fused kernels from small Relax graphs, schedules them and compares with numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax, tirx

from tinsmith.targets.schedule import schedule_module
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import KernelReport
from tinsmith.targets.x86.specs import X86_64_V3

Array = npt.NDArray[Any]
Emit = Callable[..., relax.Expr]
# Two cores, so that the parallel forms are built, too.
SPEC = replace(X86_64_V3, cores=2)

_BEFORE = [
    relax.transform.LegalizeOps(),
    relax.transform.AnnotateTIROpPattern(),
    relax.transform.FoldConstant(),
    relax.transform.FuseOps(),
    relax.transform.FuseTIR(),
    relax.transform.DeadCodeElimination(),
    relax.transform.RewriteDataflowReshape(),
]
_AFTER = [
    relax.transform.ToNonDataflow(),
    relax.transform.RemovePurityChecking(),
    relax.transform.CallTIRRewrite(),
    relax.transform.StaticPlanBlockMemory(),
    relax.transform.LowerAllocTensor(),
    relax.transform.KillAfterLastUse(),
    relax.transform.LowerRuntimeBuiltin(),
    relax.transform.ComputePrimValue(),
    relax.transform.VMShapeLower(),
    relax.transform.AttachGlobalSymbol(),
]


def fused(emit: Emit, inputs: Sequence[Array]) -> tvm.IRModule:
    """The module after fusion. `emit(e, x0, x1, ...)` builds the graph; `e` emits a call."""
    builder = relax.BlockBuilder()
    variables = [
        relax.Var(f"x{i}", relax.TensorType(list(a.shape), str(a.dtype)))
        for i, a in enumerate(inputs)
    ]
    with builder.function("main", variables):
        with builder.dataflow():
            output = builder.emit_output(emit(builder.emit, *variables))
        builder.emit_func_output(output)
    return tvm.transform.Sequential(_BEFORE)(builder.get())


def run(module: tvm.IRModule, inputs: Sequence[Array], spec: TargetSpec = SPEC) -> list[Array]:
    """The outputs of a scheduled module."""
    target = tvm.target.Target(spec.tvm_target_config())
    with tvm.transform.PassContext(config={"tirx.disable_storage_rewrite": True}):
        pipeline = tvm.transform.Sequential(_AFTER)
        executable = tvm.compile(module, target=target, relax_pipeline=pipeline)
    machine = relax.VirtualMachine(executable, tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(a) for a in inputs))
    results = [result] if hasattr(result, "numpy") else list(result)
    return [r.numpy() for r in results]


def check(
    emit: Emit,
    reference: Callable[..., Any],
    inputs: Sequence[Array],
    templates: str,
    tolerance: float = 3e-6,
    spec: TargetSpec = SPEC,
) -> tuple[tvm.IRModule, tuple[KernelReport, ...]]:
    """Schedules, runs and compares; `templates` are those expected, in order of kernel names."""
    module, reports = schedule_module(fused(emit, inputs), spec)
    assert " ".join(report.template for report in reports) == templates
    expected = reference(*inputs)
    outputs = run(module, inputs, spec)
    many = expected if isinstance(expected, (tuple, list)) else [expected]
    assert len(outputs) == len(many)
    for output, wanted in zip(outputs, many, strict=True):
        wanted = np.asarray(wanted)
        assert output.shape == wanted.shape
        scale = max(1.0, float(np.max(np.abs(wanted.astype(np.float64)), initial=0.0)))
        np.testing.assert_allclose(output, wanted, rtol=tolerance, atol=tolerance * scale)
    return module, reports


def floats(*shape: int, seed: int = 0) -> Array:
    """Normally distributed float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def kernels(module: tvm.IRModule) -> list[tirx.PrimFunc]:
    """All TensorIR functions of a module."""
    return [f for f in module.functions.values() if isinstance(f, tirx.PrimFunc)]


def text(module: tvm.IRModule) -> str:
    """The TensorIR of all kernels."""
    return "\n".join(f.script() for f in kernels(module))


def number(value: float) -> relax.Constant:
    """A float32 constant."""
    return relax.const(np.float32(value))
