"""Running a Relax module of any stage of the pipeline, with all its intermediate tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tinsmith.compiler.module.write.vm import TO_INSTRUCTIONS
from tinsmith.passes.graph import Legalize
from tinsmith.targets.algorithms import DirectOnly
from tinsmith.targets.registry import backend_of
from tinsmith.targets.spec import TargetSpec

_TO_KERNELS = (
    relax.backend.DispatchSampling(),
    relax.backend.DispatchSortScan(),
    relax.transform.LegalizeOps(),
)


@dataclass(frozen=True)
class Tensor:
    """An intermediate result: `name` says which binding of `main` and what computes it."""

    name: str
    value: np.ndarray

    @property
    def variable(self) -> str:
        """The variable that is bound, without what computes it."""
        return self.name.partition(" (")[0]


def run_stage(
    module: tvm.IRModule, inputs: Sequence[np.ndarray], spec: TargetSpec
) -> list[np.ndarray]:
    """What `main` returns. Runs in TVM's virtual machine, kernels as they stand in `module`."""
    target = tvm.target.Target(spec.tvm_target_config())
    target = target.with_host(target)
    with target:
        # Some layouts that the passes choose only this project's definitions know.
        backend = backend_of(spec)
        legalize = Legalize(backend.legalizers(spec, DirectOnly()))
        kernels = (legalize, *_TO_KERNELS, *backend.lowering().unscheduled)
        module = TO_INSTRUCTIONS(tvm.transform.Sequential(list(kernels))(module))
    executable = tvm.compile(module, target=target, relax_pipeline=None)
    machine = relax.VirtualMachine(executable, tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(np.array(array)) for array in inputs))
    if isinstance(result, tvm.runtime.Tensor):
        return [result.numpy()]
    return [item.numpy() for item in result]


def run_all_tensors(
    module: tvm.IRModule, inputs: Sequence[np.ndarray], spec: TargetSpec
) -> list[Tensor]:
    """Every tensor that `main` binds, in order of execution."""
    exposed, names = expose_tensors(module)
    values = run_stage(exposed, inputs, spec)
    return [Tensor(name, value) for name, value in zip(names, values, strict=True)]


def expose_tensors(module: tvm.IRModule) -> tuple[tvm.IRModule, list[str]]:
    """`module` with a `main` that returns every tensor it binds, and the tensors' names."""
    function = relax.transform.ToNonDataflow()(module)["main"]
    variables: list[relax.Var] = []
    names: list[str] = []
    for block in function.body.blocks:
        for binding in block.bindings:
            if isinstance(binding.var.ty, relax.TensorType):
                variables.append(binding.var)
                names.append(f"{binding.var.name} ({_operation(binding)})")
    body = relax.SeqExpr(function.body.blocks, relax.Tuple(variables))
    exposed = relax.Function(
        function.params,
        body,
        relax.TupleType([variable.ty for variable in variables]),
        function.is_pure,
        function.attrs,
    )
    result = tvm.IRModule(dict(module.functions.items()), attrs=module.attrs)
    result.update_func(result.get_global_var("main"), exposed)
    return result, names


def _operation(binding: relax.Binding) -> str:
    """What computes a binding: the kernel's or the operator's name."""
    value = getattr(binding, "value", None)
    if not isinstance(value, tvm.ir.Call):
        return type(value).__name__.lower()
    if value.args and isinstance(value.args[0], tvm.ir.GlobalVar):
        return str(value.args[0].name_hint)
    return str(getattr(value.op, "name", getattr(value.op, "name_hint", "call")))
