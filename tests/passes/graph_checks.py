"""What the tests of the graph passes share: running modules, and weights in TVMScript."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import relax

Pass = Callable[[tvm.IRModule], tvm.IRModule]


def with_weights(module: tvm.IRModule, **weights: np.ndarray) -> tvm.IRModule:
    """`module` with the parameters of that name bound to constants."""
    return relax.transform.BindParams("main", weights)(module)


def assert_becomes(step: Pass, before: tvm.IRModule, after: tvm.IRModule) -> None:
    """The pass turns `before` into `after`, is idempotent, and keeps the interface."""
    result = step(before)
    relax.analysis.well_formed(result)
    tvm.ir.assert_structural_equal(result, relax.transform.Normalize()(after), map_free_vars=True)
    tvm.ir.assert_structural_equal(step(result), result, map_free_vars=True)
    assert_same_interface(before, result)


def assert_left_alone(step: Pass, module: tvm.IRModule) -> None:
    """The pass finds nothing to do."""
    assert_becomes(step, module, module)


def assert_same_interface(before: tvm.IRModule, after: tvm.IRModule) -> None:
    """`main` takes and returns tensors of the same types, under the same names."""
    old, new = before["main"], after["main"]
    assert [p.name for p in old.params] == [p.name for p in new.params]
    tvm.ir.assert_structural_equal([p.ty for p in old.params], [p.ty for p in new.params])
    tvm.ir.assert_structural_equal(old.ret_ty, new.ret_ty)


def execute(module: tvm.IRModule, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of `main`, computed by TVM's own unscheduled kernels."""
    # Optimising would take several times as long as everything else.
    target = tvm.target.Target({"kind": "llvm", "opt-level": 0})
    executable = tvm.compile(module, target=target)
    machine = relax.VirtualMachine(executable, tvm.cpu())
    result = machine["main"](*[tvm.runtime.tensor(value) for value in inputs])
    return [result.numpy()] if hasattr(result, "numpy") else [item.numpy() for item in result]


def random_inputs(module: tvm.IRModule, seed: int = 0) -> list[np.ndarray]:
    """Normally distributed float inputs for `main`."""
    generator = np.random.default_rng(seed)
    return [
        generator.standard_normal([int(extent) for extent in parameter.ty.shape.values]).astype(
            "float32"
        )
        for parameter in module["main"].params
    ]


def assert_computes_the_same(
    step: Pass, module: tvm.IRModule, tolerance: float = 1e-5
) -> tvm.IRModule:
    """`main` gives the same outputs before and after the pass; answers the module after it."""
    after = step(module)
    inputs = random_inputs(module)
    for expected, actual in zip(execute(module, inputs), execute(after, inputs), strict=True):
        scale = max(float(np.abs(expected).max()), 1e-6)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)
    return after


def operators(module: tvm.IRModule) -> list[str]:
    """The operators that `main` calls, in order; kernels by the name of their PrimFunc."""
    found = []
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call):
                name = value.op.name.removeprefix("relax.")
                found.append(value.args[0].name_hint if name == "call_tir" else name)
    return found
