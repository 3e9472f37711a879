"""Builds the fused function that a template sees, and runs what the template makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir import Call
from tvm.sym import Analyzer

from tinsmith.passes.graph import Legalize
from tinsmith.targets.algorithms import AlgorithmLookup
from tinsmith.targets.cpu.operators import legalize_map
from tinsmith.targets.cpu.operators.quantization import quantization_legalizers
from tinsmith.targets.spec import TargetSpec

Array = npt.NDArray[np.floating[Any]]
Emit = Callable[[relax.BlockBuilder, Sequence[relax.Var]], relax.Expr]


def cpu_flags() -> set[str]:
    """The features of this machine's CPU, as Linux names them."""
    with open("/proc/cpuinfo") as file:
        return {flag for line in file if line.startswith("flags") for flag in line.split()}


def fuse(
    inputs: Mapping[str, Sequence[int]],
    emit: Emit,
    spec: TargetSpec,
    algorithms: AlgorithmLookup | None = None,
) -> tirx.PrimFunc:
    """The one fused function of the expression that `emit` builds from the inputs."""
    (function,) = fuse_module(inputs, emit, spec, algorithms=algorithms)
    return function


def fuse_module(
    inputs: Mapping[str, Any],
    emit: Emit,
    spec: TargetSpec,
    dtype: str = "float32",
    algorithms: AlgorithmLookup | None = None,
) -> list[tirx.PrimFunc]:
    """All fused functions of the expression that `emit` builds from inputs.

    These have a shape, and are of `dtype`; or a shape and a dtype.
    """
    builder = relax.BlockBuilder()
    variables = []
    for name, given in inputs.items():
        own = given if isinstance(given[-1], str) else (given, dtype)
        variables.append(relax.Var(name, relax.TensorType(*own)))
    with builder.function("main", variables):
        with builder.dataflow():
            output = builder.emit_output(emit(builder, variables))
        builder.emit_func_output(output)
    own = legalize_map(spec, algorithms)
    lowered = tvm.transform.Sequential(
        [
            Legalize({**own, **quantization_legalizers()}, first=own),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
        ]
    )(builder.get())
    return [f for f in lowered.functions.values() if isinstance(f, tirx.PrimFunc)]


def run(function: tirx.PrimFunc, spec: TargetSpec, arguments: Sequence[Array]) -> Array:
    """The output of a scheduled function."""
    target = tvm.target.Target(spec.tvm_target_config())
    executable = tvm.compile(function.with_attr("global_symbol", "main"), target=target)
    output = function.params[-1].ty
    result = tvm.runtime.tensor(_poison([int(e) for e in output.shape], str(output.dtype)))
    executable["main"](*(tvm.runtime.tensor(a) for a in arguments), result)
    return result.numpy()


def _poison(shape: Sequence[int], dtype: str) -> Array:
    """An array that no kernel leaves as it is."""
    return np.full(shape, np.nan if "float" in dtype else 99, dtype)


def prefetched(body: tirx.Stmt) -> set[tuple[int, ...]]:
    """The indices of all elements that a scheduled body asks for ahead."""
    analyzer = Analyzer()
    asked: set[tuple[int, ...]] = set()

    def value(expression: Any, known: Mapping[tirx.Var, Any]) -> int:
        replaced = tvm_ffi.structural_map(expression, ((tirx.Var, lambda v: known.get(v, v)),))
        return int(analyzer.simplify(replaced))

    def addresses(node: Any) -> list[Call]:
        found: list[Call] = []

        def visit(call: Call) -> None:
            if call.op.name == "tirx.address_of":
                found.append(call)

        tvm_ffi.structural_walk(node, (Call, visit))
        return found

    def execute(statement: tirx.Stmt, known: Mapping[tirx.Var, Any]) -> None:
        if not addresses(statement):
            return
        if isinstance(statement, tirx.SeqStmt):
            for part in statement.seq:
                execute(part, known)
        elif isinstance(statement, tirx.For):
            for i in range(value(statement.extent, known)):
                execute(statement.body, {**known, statement.loop_var: tirx.const(i, "int32")})
        elif isinstance(statement, tirx.IfThenElse):
            taken = value(statement.condition, known)
            branch = statement.then_case if taken else statement.else_case
            if branch is not None:
                execute(branch, known)
        else:
            for call in addresses(statement):
                asked.add(tuple(value(i, known) for i in call.args[0].indices))

    execute(body, {})
    return asked
