"""Kernels that sum products take denormal numbers for zero; all others keep them."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from template_checks import fuse
from tvm import relax, tirx
from tvm.tirx import PrimFunc

import tinsmith
from tinsmith.targets.cpu import loops
from tinsmith.targets.registry import get_target
from tinsmith.targets.schedule import match_template, schedule_function
from tinsmith.targets.x86.denormals import flush_denormals

TINY = np.float32(1e-40)
x86_only = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="a control register of x86"
)


def saved(path: Path, nodes: list[onnx.NodeProto], shape: tuple, weights: dict) -> Path:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def compiled(folder: Path, nodes: list[onnx.NodeProto], shape: tuple[int, ...], **weights):
    model = saved(folder / "model.onnx", nodes, shape, weights)
    return tinsmith.compile(model, target="native", runner=False, tuned=False, threads=1)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.5, 1.5, shape).astype("float32")


PRODUCTS = {
    "matmul": (helper.make_node("MatMul", ["x", "w"], ["y"]), (5, 24), (24, 40)),
    "convolution": (helper.make_node("Conv", ["x", "w"], ["y"]), (1, 16, 9, 9), (24, 16, 1, 1)),
    "winograd": (
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]),
        (1, 32, 28, 28),
        (64, 32, 3, 3),
    ),
    "depthwise": (
        helper.make_node("Conv", ["x", "w"], ["y"], group=16),
        (1, 16, 9, 9),
        (16, 1, 3, 3),
    ),
}


@x86_only
@pytest.mark.parametrize("kind", PRODUCTS)
def test_products_take_denormals_for_zero(kind: str, tmp_path: Path) -> None:
    """Times 2**30 a denormal input would come out as an ordinary number."""
    node, shape, weights = PRODUCTS[kind]
    with compiled(tmp_path, [node], shape, w=random(*weights) * np.float32(2.0**30)) as module:
        ordinary, tiny = random(*shape), np.full(shape, TINY)
        assert np.abs(module.run([ordinary])[0]).min() > 0
        np.testing.assert_array_equal(module.run([tiny])[0], 0)


@x86_only
def test_elementwise_kernels_keep_denormals(tmp_path: Path) -> None:
    node = helper.make_node("Log", ["x"], ["y"])
    with compiled(tmp_path, [node], (3, 37)) as module:
        (result,) = module.run([np.full((3, 37), TINY)])
    np.testing.assert_allclose(result, np.log(TINY), rtol=1e-6)


@x86_only
def test_the_caller_keeps_its_denormals(tmp_path: Path) -> None:
    """The run is in the caller's thread, whose control register is as it was."""
    node, shape, weights = PRODUCTS["matmul"]
    with compiled(tmp_path, [node], shape, w=random(*weights)) as module:
        module.run([random(*shape)])
        assert np.full(8, TINY) @ np.full(8, 2.0**100, "float32") > 0
        assert (np.full(64, TINY) * np.float32(0.5)).min() > 0


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "cortex-a76"])
def test_each_task_of_x86_sets_and_restores(target: str) -> None:
    spec = get_target(target)
    weights = relax.const(random(256, 512))
    function = fuse({"x": (128, 256)}, lambda b, v: b.emit(relax.op.matmul(v[0], weights)), spec)
    template, match = match_template(function, spec)
    decisions = template.default(match, spec)
    text = str(schedule_function(function, template, match, decisions, spec))
    expected = int(target.startswith("x86"))
    assert text.count("stmxcsr") == expected
    assert text.count("ldmxcsr") == 2 * expected
    if expected:
        assert text.index("T.parallel") < text.index("stmxcsr") < text.index("ldmxcsr")


def test_serial_loops_beside_tasks_do_so_too() -> None:
    """As in a recurrence, whose rounds have tasks, and loops that one thread runs."""
    x = tirx.decl_buffer((8, 4), "float32", "x")

    def scaled(i: object, j: object) -> tirx.Stmt:
        return loops.store(x, [i, j], loops.load(x, i, j) * tirx.const(0.5, "float32"))

    def rounds(t: object) -> tirx.Stmt:
        tasks = loops.parallel("task", 8, lambda i: scaled(i, 0))
        return loops.sequence([tasks, loops.serial("one", 8, lambda i: scaled(i, 1))])

    text = str(flush_denormals(PrimFunc([x], loops.serial("time", 3, rounds))))
    tasks, one = text.index("T.parallel"), text.index("for one in")
    first, second = (m.start() for m in re.finditer("stmxcsr", text))
    assert text.index("for time in") < tasks < first < second < one
    assert text.count("ldmxcsr") == 4


@x86_only
def test_a_batch_of_any_size_takes_them_for_zero(tmp_path: Path) -> None:
    """A loop over the batch becomes a stage of its own."""
    node, (_, k), weights = PRODUCTS["matmul"]
    model = saved(
        tmp_path / "model.onnx", [node], ("n", k), {"w": random(*weights) * np.float32(2.0**30)}
    )
    module = tinsmith.compile(
        model, shapes={"x": (tinsmith.Range(1, 6), k)}, runner=False, tuned=False, threads=2
    )
    with module:
        for batch in (1, 4, 6):
            np.testing.assert_array_equal(module.run([np.full((batch, k), TINY)])[0], 0)
            assert np.abs(module.run([random(batch, k)])[0]).min() > 0
        assert (np.full(64, TINY) * np.float32(0.5)).min() > 0
