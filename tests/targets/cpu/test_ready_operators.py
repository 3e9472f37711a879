"""Time loops and walks through trees, called as any front end may, against plain numpy."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tinsmith.targets.operators import (
    LANES,
    OUTCOMES,
    Forest,
    ForestWorkload,
    RecurrentWorkload,
    forest_kernel,
    read_activations,
    recurrent_kernel,
    tables_of,
)


def _call(
    function: tvm.tirx.PrimFunc, arrays: list[np.ndarray], results: list[tuple[tuple, str]]
) -> list[np.ndarray]:
    """What a graph computes that calls `function` alone."""
    bb = relax.BlockBuilder()
    inputs = [
        relax.Var(f"x{i}", relax.TensorType(array.shape, str(array.dtype)))
        for i, array in enumerate(arrays)
    ]
    types = [relax.TensorType(shape, dtype) for shape, dtype in results]
    with bb.function("main", inputs):
        called = relax.call_tir(bb.add_func(function, "kernel"), relax.Tuple(inputs), types)
        bb.emit_func_output(bb.emit(called))
    executable = tvm.compile(bb.get(), tvm.target.Target({"kind": "llvm"}))
    machine = relax.VirtualMachine(executable, tvm.cpu())
    found = machine["main"](*map(tvm.runtime.tensor, arrays))
    return [t.numpy() for t in ([found] if isinstance(found, tvm.runtime.Tensor) else found)]


def test_a_plain_recurrence() -> None:
    generator = np.random.default_rng(0)
    steps, batch, hidden = 5, 2, 6
    projected = generator.standard_normal((steps, batch, hidden)).astype("float32")
    recurrent = generator.standard_normal((1, hidden, hidden)).astype("float32")
    state = generator.standard_normal((1, batch, hidden)).astype("float32")
    (tanh,) = read_activations(["Tanh"], (), (), None)
    workload = RecurrentWorkload("rnn", steps, batch, hidden, "float32", ((tanh,),), (False,))
    shapes = [(steps, 1, batch, hidden), state.shape, state.shape]
    sequence, final, _ = _call(
        recurrent_kernel(workload), [projected, recurrent, state], [(s, "float32") for s in shapes]
    )
    expected = state[0]
    for step in range(steps):
        expected = np.tanh(projected[step] + expected @ recurrent[0])
        np.testing.assert_allclose(sequence[step, 0], expected, atol=1e-5)
    np.testing.assert_array_equal(final[0], sequence[-1, 0])


def test_stumps_are_added_up() -> None:
    """Three trees of one branch each: the left leaf where the feature is at most the threshold."""
    features, thresholds = np.array([0, 1, 2]), np.array([0.0, 0.5, -0.5], "float32")
    said = np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]], "float32")
    branch = np.array([True, False, False] * 3)
    roots = np.arange(0, 9, 3)
    own = np.arange(9)
    forest = Forest(
        features=np.where(branch, features.repeat(3), 0),
        thresholds=thresholds.repeat(3),
        taken=np.where(branch, OUTCOMES["BRANCH_LEQ"], 0),
        yes=np.where(branch, own + 1, own).astype(np.int32),
        no=np.where(branch, own + 2, own).astype(np.int32),
        roots=roots,
        weight_nodes=own[~branch],
        weight_targets=np.zeros(6, np.int64),
        weights=said.reshape(-1),
        targets=1,
    )
    tables = tables_of(forest, LANES, 0.0)
    x = np.array([[-1, 1, 0], [0, 0.5, -0.5], [0.1, 0.6, -0.6]], "float32")
    workload = ForestWorkload(
        rows=3,
        features=3,
        trees=tables.trees,
        levels=tables.levels,
        nodes=len(tables.nodes),
        leaves=len(tables.weights),
        entries=tables.weights.shape[1],
        targets=1,
        dtype="float32",
        outcomes=frozenset({OUTCOMES["BRANCH_LEQ"]}),
        combine="sum",
    )
    shape = (3, workload.chunks, 1)
    arrays = [x, tables.nodes, tables.leaf_of, tables.weights]
    (found,) = _call(forest_kernel(workload), arrays, [(shape, "float32")])
    left = x <= thresholds
    expected = np.where(left, said[:, 0], said[:, 1]).sum(1)
    np.testing.assert_array_equal(found.sum((1, 2)), expected)


def test_a_length_beyond_the_end_is_the_end() -> None:
    """Backwards, the first step read would lie behind the sequence."""
    generator = np.random.default_rng(1)
    steps, batch, hidden = 4, 3, 2
    projected = generator.standard_normal((steps, batch, hidden)).astype("float32")
    recurrent = np.zeros((1, hidden, hidden), "float32")
    state = np.zeros((1, batch, hidden), "float32")
    functions = (tuple(read_activations(["Tanh"], (), (), None)),)
    workload = RecurrentWorkload(
        "rnn", steps, batch, hidden, "float32", functions, (True,), has_lengths=True
    )
    shapes = [(steps, 1, batch, hidden), state.shape, state.shape]
    lengths = np.array([1000, -5, 2], "int32")
    sequence, _, _ = _call(
        recurrent_kernel(workload),
        [projected, recurrent, state, lengths],
        [(s, "float32") for s in shapes],
    )
    expected = np.tanh(projected)
    expected[:, 1] = expected[2:, 2] = 0
    np.testing.assert_allclose(sequence[:, 0], expected, atol=1e-5)
