"""Splitting kernels into stages, and where their buffers live."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir import PrimType
from tvm.script import tirx as T  # noqa: N812
from tvm.sym import Analyzer

from tinsmith.compiler.module.loader import load
from tinsmith.compiler.module.write.build import lower_kernels
from tinsmith.compiler.module.write.lowered import LoweredModel
from tinsmith.compiler.module.write.stages import STACK_BYTES, split_kernel
from tinsmith.compiler.module.write.writer import write_module
from tinsmith.targets.cpu import loops
from tinsmith.targets.x86.specs import X86_64_V3


@T.prim_func(private=True, s_tir=True)
def register_tile(
    A: T.Buffer((32, 64), "float32"), B: T.Buffer((64, 32), "float32"),
    C: T.Buffer((32, 32), "float32"),
):  # fmt: skip
    """C = A @ B with accumulators in a local buffer; no sblocks."""
    for io in T.parallel(8):
        accumulators = T.alloc_buffer((4, 32), "float32", scope="local")
        for i in T.unroll(4):
            for jo in T.unroll(4):
                for j in T.vectorized(8):
                    accumulators[i, jo * 8 + j] = T.float32(0)
        for k in range(64):
            for i in T.unroll(4):
                for jo in T.unroll(4):
                    for j in T.vectorized(8):
                        accumulators[i, jo * 8 + j] = (
                            accumulators[i, jo * 8 + j] + A[io * 4 + i, k] * B[k, jo * 8 + j]
                        )
        for i in T.unroll(4):
            for jo in T.unroll(4):
                for j in T.vectorized(8):
                    C[io * 4 + i, jo * 8 + j] = accumulators[i, jo * 8 + j]


@T.prim_func(private=True, s_tir=True)
def two_loops(A: T.Buffer((16, 4096), "float32"), C: T.Buffer((16, 4096), "float32")):
    """C = reversed(A) + sum(row of A): scratch across stages and per task."""
    total = T.alloc_buffer((16,), "float32")
    for i in T.parallel(16):
        total[i] = T.float32(0)
        for j in range(4096):
            total[i] = total[i] + A[i, j]
    for i in T.parallel(16):
        line = T.alloc_buffer((4096,), "float32")
        for j in range(4096):
            line[j] = A[i, 4095 - j]
        for j in range(4096):
            C[i, j] = line[j] + total[i]


@T.prim_func(private=True, s_tir=True)
def recurrence(A: T.Buffer((5, 16), "float32"), C: T.Buffer((5, 16), "float32")):
    """C[t] = mean(C[t - 1]) + A[t] + 2 * t: what crosses steps lives across stages."""
    mean = T.alloc_buffer((1,), "float32")
    mean[0] = T.float32(0)
    for t in range(5):
        for i in T.parallel(16):
            C[t, i] = mean[0] + A[t, i] + T.Cast("float32", 2 * t)
        mean[0] = T.float32(0)
        for i in range(16):
            mean[0] = mean[0] + C[t, i] * T.float32(1 / 16)


@T.prim_func(private=True, s_tir=True)
def inner_parallel(A: T.Buffer((4, 8), "float32"), C: T.Buffer((4, 8), "float32")):
    for k in range(2):
        for i in range(4):
            for j in T.parallel(8):
                C[i, j] = A[i, j] * T.float32(2 + k)


def _split(function: tirx.PrimFunc):
    lowered = lower_kernels({"kernel": function}, X86_64_V3)["kernel"]
    return split_kernel("kernel", lowered, [True] * len(lowered.params))


def _model(function: tirx.PrimFunc, shapes: list[tuple[int, ...]]) -> LoweredModel:
    builder = relax.BlockBuilder()
    inputs = [
        relax.Var(f"x{i}", relax.TensorType(shape, "float32"))
        for i, shape in enumerate(shapes[:-1])
    ]
    kernel = builder.add_func(function, "kernel")
    with builder.function("main", inputs):
        with builder.dataflow():
            kind = relax.TensorType(shapes[-1], "float32")
            output = builder.emit_output(relax.call_tir(kernel, inputs, kind))
        builder.emit_func_output(output)
    names = tuple(f"x{i}" for i in range(len(inputs)))
    return LoweredModel(builder.get(), X86_64_V3, names, ("y",))


def test_a_parallel_loop_becomes_a_stage_with_its_extent() -> None:
    code, functions = _split(register_tile)
    (stage,) = code.stages
    assert stage.extent == 8
    assert stage.pointers == (0, 1, 2)
    assert code.scratch == ()
    assert code.task_scratch_bytes == 0
    (function,) = functions.values()
    assert function.attrs["tirx.noalias"]
    assert "T.parallel" not in str(function)


def test_accumulators_stay_in_registers() -> None:
    target = tvm.target.Target(X86_64_V3.tvm_target_config())
    _, functions = _split(register_tile)
    with target:
        module = tirx.transform.LowerTVMBuiltin()(tvm.IRModule(functions))
        module = tirx.transform.LowerIntrin()(module)
        library = tvm.get_global_func("target.build.llvm")(module, target)
    code = library.inspect_source("ll")
    body = code[code.index("define") :]
    assert "alloca" not in body
    assert "Workspace" not in body
    assert body.count("noalias") >= 3


def test_buffers_across_stages_are_scratch_and_large_ones_are_per_task() -> None:
    code, _ = _split(two_loops)
    assert [stage.extent for stage in code.stages] == [16, 16]
    assert code.scratch == (64,)
    assert code.task_scratch_bytes == 4096 * 4 > STACK_BYTES
    assert code.stages[0].task_scratch == ()
    assert code.stages[1].task_scratch == (0,)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_serial_loop_around_parallel_ones_runs_in_rounds(threads: int, tmp_path: Path) -> None:
    code, _ = _split(recurrence)
    told = [(stage.extent, stage.rounds, stage.span) for stage in code.stages]
    assert told == [(1, 1, 1), (16, 5, 2), (1, 1, 1)]
    assert code.serialised_loops == 0
    a = np.random.default_rng(0).standard_normal((5, 16)).astype("float32")
    mean, rows = np.float32(0), []
    for t in range(5):
        rows.append(mean + a[t] + 2 * t)
        mean = rows[-1].mean()
    model = _model(recurrence, [(5, 16), (5, 16)])
    with load(write_module(model, tmp_path / "a", forms=("shared",)).path, threads) as module:
        for _ in range(2):
            np.testing.assert_allclose(module.run([a])[0], np.stack(rows), rtol=1e-5)


def test_a_parallel_loop_begins_at_its_minimum() -> None:
    """Partitioning of loops, which comes after their canonical form, makes minima other than 0."""
    a, c = (tirx.decl_buffer((16,), "int32", name) for name in ("A", "C"))
    i = tirx.Var("i", PrimType("int32"))
    store = loops.store(c, (i,), loops.load(a, i))
    body = tirx.For(i, tirx.IntImm("int32", 3), 13, tirx.ForKind.PARALLEL, store)
    code, functions = split_kernel("kernel", tirx.PrimFunc([a, c], body), [True, True])
    assert [stage.extent for stage in code.stages] == [13]
    (function,) = functions.values()
    found: list[tirx.For] = []
    tvm_ffi.structural_walk(function.body, (tirx.For, found.append))
    begin, end = function.params[:2]
    simplify = Analyzer().simplify
    assert int(simplify(found[0].min - begin)) == 3
    assert int(simplify(found[0].extent - (end - begin))) == 0


def test_an_inner_parallel_loop_is_reported() -> None:
    code, functions = _split(inner_parallel)
    assert code.serialised_loops == 1
    assert [stage.extent for stage in code.stages] == [1]
    assert all("T.parallel" not in str(function) for function in functions.values())


def test_a_value_that_is_read_before_the_loops_stays_before_them() -> None:
    a, c = (tirx.decl_buffer((16,), "int32", name) for name in ("A", "C"))
    first = tirx.Var("first", PrimType("int32"))
    loop = loops.parallel("i", 16, lambda i: loops.store(c, (i,), loops.load(a, i) + first))
    body = tirx.SeqStmt([tirx.Bind(first, loops.load(a, 0)), loop])
    code, functions = split_kernel("kernel", tirx.PrimFunc([a, c], body), [True, True])
    assert len(code.stages) == 1
    (function,) = functions.values()
    assert str(function).index("A[0]") < str(function).index("for ")


def test_a_value_that_one_stage_reads_and_uses_leaves_the_others_alone() -> None:
    """In each of five rounds: y[0] = x[0] + 1 by one thread, then x[i] += y[0] by all."""
    x, y = (tirx.decl_buffer((16,), "int32", name) for name in ("X", "Y"))
    first = tirx.Var("first", PrimType("int32"))
    after = tirx.Var("after", PrimType("int32"))
    one = tirx.const(1, "int32")

    def turn(_: Any) -> Any:
        shared = loops.parallel(
            "i", 16, lambda i: loops.store(x, (i,), loops.load(x, i) + loops.load(y, 0))
        )
        read = [tirx.Bind(first, loops.load(x, 0)), tirx.Bind(after, first + one)]
        return tirx.SeqStmt([*read, loops.store(y, (0,), after), shared])

    body = loops.serial("turn", 5, turn)
    code, _ = split_kernel("kernel", tirx.PrimFunc([x, y], body), [True, True])
    told = [(stage.extent, stage.rounds, stage.span) for stage in code.stages]
    assert told == [(1, 1, 1), (1, 5, 3), (16, 1, 1), (1, 1, 1)]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results(threads: int, tmp_path: Path) -> None:
    a = np.random.default_rng(0).standard_normal((32, 64)).astype("float32")
    b = np.random.default_rng(1).standard_normal((64, 32)).astype("float32")
    model = _model(register_tile, [(32, 64), (64, 32), (32, 32)])
    with load(write_module(model, tmp_path / "a", forms=("shared",)).path, threads) as module:
        np.testing.assert_allclose(module.run([a, b])[0], a @ b, rtol=1e-5, atol=1e-4)
    rows = np.random.default_rng(2).integers(-9, 9, (16, 4096)).astype("float32")
    model = _model(two_loops, [(16, 4096), (16, 4096)])
    with load(write_module(model, tmp_path / "b", forms=("shared",)).path, threads) as module:
        expected = rows[:, ::-1] + rows.sum(axis=1, keepdims=True)
        for _ in range(50):
            np.testing.assert_array_equal(module.run([rows])[0], expected)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor")
def test_threads_keep_off_the_processor_of_the_caller(tmp_path: Path) -> None:
    usable = os.sched_getaffinity(0)
    before = set(os.listdir("/proc/self/task"))
    rows = np.ones((16, 4096), "float32")
    model = _model(two_loops, [(16, 4096), (16, 4096)])
    with load(write_module(model, tmp_path / "m", forms=("shared",)).path, 2) as module:
        module.run([rows])
        (thread,) = (int(task) for task in set(os.listdir("/proc/self/task")) - before)
        try:
            for processor in sorted(usable)[:2]:
                os.sched_setaffinity(0, {processor})
                deadline = time.monotonic() + 300
                # The thread is moved when it is woken, so it has to fall asleep first.
                while os.sched_getaffinity(thread) != usable - {processor}:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                    module.run([rows])
        finally:
            os.sched_setaffinity(0, usable)
