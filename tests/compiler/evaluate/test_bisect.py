"""A fault that is put into a pass is found there, and so is the tensor that it spoils."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from onnx import TensorProto, helper
from tvm import relax

from tinsmith import CompileConfig, PruneConfig, compile_to
from tinsmith.compiler.errors import ConfigError
from tinsmith.compiler.evaluate.bisect import (
    MODULE,
    Tensor,
    bisect,
    bisect_module,
    first_divergent,
)
from tinsmith.compiler.frontends.onnx.model import ImportedModel, import_onnx
from tinsmith.compiler.module.manifest import read_manifest
from tinsmith.compiler.pipeline import Pipeline, Step, lowering
from tinsmith.passes.graph.rewriter import BlockRewriter
from tinsmith.passes.graph.tensors import constant, constant_array
from tinsmith.targets.registry import get_target

SPEC = get_target("native")


@pytest.fixture(scope="module")
def imported(small_model_file: Path) -> ImportedModel:
    return import_onnx(small_model_file)


class _Doubler(BlockRewriter):
    """Doubles every constant of `size` elements that an operator takes."""

    def __init__(self, module: tvm.IRModule, size: int) -> None:
        super().__init__(module)
        self.size = size

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        if not isinstance(value, relax.Call):
            return value
        arguments = []
        for argument in value.args:
            array = constant_array(argument)
            spoiled = array is not None and array.size == self.size
            arguments.append(constant(array * 2) if spoiled else argument)
        return relax.Call(value.op, arguments, value.attrs, value.ty_args)


def spoil(module: tvm.IRModule, size: int) -> tvm.IRModule:
    return _Doubler(module, size).run()


def with_fault(pipeline: Pipeline, name: str, size: int) -> Pipeline:
    """`pipeline` with a spoiled pass of that name."""
    apply = dict(pipeline.steps)[name]
    return pipeline.with_step(Step(name, lambda module: spoil(apply(module), size)))


def test_a_sound_compilation_has_no_divergence(small_model_file: Path, small_module: Path) -> None:
    found = bisect_module(small_module, small_model_file)
    assert found.first_divergence is None
    # Every pass that made the module is replayed, in its order.
    passes = [entry.name for entry in read_manifest(small_module).passes]
    assert [step.name for step in found.steps] == ["import", *passes, MODULE]
    assert "no pass diverges" in found.conclusion()


def test_a_module_that_differs_by_design_is_refused(small_model_file: Path, tmp_path: Path) -> None:
    config = CompileConfig(
        pruning=PruneConfig(ratio=0.3), runner=False, static_library=False, target="native"
    )
    report = compile_to(small_model_file, tmp_path / "m", config=config)
    with pytest.raises(ConfigError, match="quantised or pruned, so it differs"):
        bisect_module(report.path, small_model_file)


@pytest.mark.parametrize("name", ["fold_constants", "eliminate_dead_code_again"])
def test_names_the_faulty_pass_and_the_first_spoiled_tensor(
    imported: ImportedModel, name: str
) -> None:
    # Only the weights of the second convolution have 16 * 16 * 3 * 3 elements.
    pipeline = with_fault(lowering(SPEC), name, 16 * 16 * 3 * 3)
    found = bisect(imported, SPEC, pipeline, seed=0, run_module=None)
    assert found.first_divergence is not None
    assert found.first_divergence.name == name
    assert [step.agrees for step in found.steps] == [True] * (len(found.steps) - 1) + [False]
    assert "conv2d" in found.first_divergence.tensor
    assert name in found.conclusion()
    assert found.to_dict()["first_divergence"] == name


def test_a_fault_of_the_import_is_named_against_the_original(imported: ImportedModel) -> None:
    faulty = replace(imported, module=spoil(imported.module, 16 * 3 * 3 * 3))
    found = bisect(faulty, SPEC, lowering(SPEC), seed=0, run_module=None)
    assert [step.name for step in found.steps] == ["import"]
    assert "conv2d" in found.steps[0].tensor


def test_a_fault_of_the_module_alone_is_code_generation(imported: ImportedModel) -> None:
    found = bisect(
        imported,
        SPEC,
        lowering(SPEC),
        seed=0,
        run_module=lambda inputs: [np.zeros((1, 5), np.float32)],
    )
    assert found.first_divergence is not None
    assert found.first_divergence.name == MODULE


def tensors(**values: list[float]) -> list[Tensor]:
    return [Tensor(name, np.array(value)) for name, value in values.items()]


def test_first_divergent_forgives_new_and_permuted_values() -> None:
    good = tensors(a=[1, 2, 3], b=[4, 5, 6])
    assert first_divergent(good, tensors(new=[7, 7, 7], b=[6, 4, 5])) == ""
    assert first_divergent(good, tensors(a=[3, 2, 1], c=[9, 9, 9], d=[8, 8, 8])) == "c"
    assert first_divergent([], tensors(c=[9, 9, 9], d=[8, 8, 8])) == "c"


def test_tensors_of_the_model_are_found_by_their_names() -> None:
    """Two tensors that a pass has mistaken for each other: each has values that are known."""
    good = tensors(left=[1, 2, 3], right=[4, 5, 6], t1=[7, 8, 9])
    bad = [
        Tensor("left (relax.add)", np.array([4.0, 6.0, 5.0])),
        Tensor("right (relax.add)", np.array([1.0, 2.0, 3.0])),
    ]
    assert first_divergent(good, bad) == ""
    assert first_divergent(good, bad, {"left", "right"}) == "left (relax.add)"
    kept = [Tensor("left (relax.add)", np.array([3.0, 2.0, 1.0])), bad[1]]
    assert first_divergent(good, kept, {"left", "right"}) == "right (relax.add)"
    # What a pass has numbered itself may be anything, and a part of a tensor is another one.
    other = [Tensor("t1 (relax.add)", np.array([4.0, 5.0, 6.0]))]
    assert first_divergent(good, other, {"left", "right"}) == ""
    part = [Tensor("left (relax.take)", np.array([1.0, 2.0]))]
    assert first_divergent([*good, *tensors(x=[1, 2])], part, {"left", "right"}) == ""


class _Swapper(BlockRewriter):
    """Exchanges the operands of subtractions."""

    def rewrite(self, value: relax.Expr, variable: relax.Var) -> relax.Expr:
        if isinstance(value, relax.Call) and value.op == tvm.ir.Op.get("relax.subtract"):
            return relax.op.subtract(value.args[1], value.args[0])
        return value


def test_a_fault_that_computes_what_another_tensor_holds_is_found() -> None:
    """a - b and b - a: where they are exchanged, all values are still there."""
    nodes = [
        helper.make_node("Sub", ["a", "b"], ["left"]),
        helper.make_node("Sub", ["b", "a"], ["right"]),
        helper.make_node("Exp", ["left"], ["grown"]),
        helper.make_node("Sub", ["grown", "right"], ["result"]),
    ]
    kinds = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8])
        for name in ("a", "b", "result")
    ]
    graph = helper.make_graph(nodes, "swapped", kinds[:2], kinds[2:])
    opset = helper.make_opsetid("", 17)
    imported = import_onnx(helper.make_model(graph, opset_imports=[opset], ir_version=8))
    pipeline = lowering(SPEC)
    apply = dict(pipeline.steps)["fold_constants"]
    faulty = Step("fold_constants", lambda module: _Swapper(apply(module)).run())
    found = bisect(imported, SPEC, pipeline.with_step(faulty), seed=0, run_module=None)
    assert found.first_divergence is not None
    assert found.first_divergence.tensor.startswith("left ")
