"""A part of a graph as a graph of its own."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from tinsmith.passes.graph.tensors import constant
from tinsmith.passes.prune.recovery.segment import Segment, segment


def chain() -> tvm.IRModule:
    """x -> a = x + 1 -> (b, c) = split -> d = b * c, e = a + x -> d, e."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 4), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            a = builder.emit(relax.op.add(x, constant(np.ones((1, 4), np.float32))), "a")
            parts = builder.emit(relax.op.split(a, 2, axis=1), "parts")
            b = builder.emit(parts[0], "b")
            c = builder.emit(parts[1], "c")
            d = builder.emit(relax.op.multiply(b, c), "d")
            e = builder.emit(relax.op.add(a, x), "e")
            results = builder.emit_output(relax.Tuple([d, e]))
        builder.emit_func_output(results)
    return builder.get()


def run(module: tvm.IRModule, *inputs: np.ndarray) -> list[np.ndarray]:
    built = tvm.compile(relax.transform.LegalizeOps()(module), target="llvm")
    machine = relax.VirtualMachine(built, tvm.cpu())
    found = machine["main"](*(tvm.runtime.tensor(array) for array in inputs))
    return [array.numpy() for array in found]


def test_a_part_computes_what_the_whole_does() -> None:
    module = chain()
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    whole = run(module, x)
    part = segment(module, ["a"], ["d"])
    assert [p.name for p in part["main"].params] == ["a"]
    np.testing.assert_array_equal(run(part, x + 1)[0], whole[0])
    both = Segment(["x", "a"], ["e", "b"])(module)
    e, b = run(both, x, x + 1)
    np.testing.assert_array_equal(e, whole[1])
    np.testing.assert_array_equal(b, x[:, :2] + 1)
    relax.analysis.well_formed(both)


def test_what_is_missing_is_told() -> None:
    module = chain()
    with pytest.raises(ValueError, match="no tensor of `main` is named nothing"):
        segment(module, ["a"], ["nothing"])
    with pytest.raises(ValueError, match="x is neither given nor computed"):
        segment(module, ["a"], ["e"])
