"""The pipeline as a value: it is cut, extended and run, and all that compiles does so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
import tvm_ffi
from onnx import TensorProto, helper, numpy_helper
from tvm import relax, tirx
from tvm.tirx import PrimFunc

from tinsmith import PruneConfig, QuantizationConfig
from tinsmith.compiler.calibration import ObservedModule, observe
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.errors import PassError
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pipeline import (
    PRUNED_BEFORE,
    QUANTIZED_BEFORE,
    SCHEDULE,
    Outcome,
    PassRunner,
    Pipeline,
    Step,
    graph_passes,
    lowering,
)
from tinsmith.compiler.pruning.observed import compile_graph
from tinsmith.compiler.quantization.quantizer import Quantizer
from tinsmith.compiler.workshop import workshop
from tinsmith.passes.graph.conditions import CHANNELS_LAST, KERNELS
from tinsmith.passes.quantize.insert_quantization import InsertQuantization
from tinsmith.passes.quantize.placement import observed_tensors
from tinsmith.targets.algorithms import DirectOnly
from tinsmith.targets.registry import backend_of, get_target
from tinsmith.targets.x86.specs import X86_64_V3

NATIVE = get_target("native")


def model(channels: int = 4, pixels: int = 6) -> onnx.ModelProto:
    """A convolution and a rectifier."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((channels, channels, 3, 3)).astype("float32")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, pixels, pixels])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=opset, ir_version=8)
    )


@pytest.fixture(scope="module")
def imported() -> tvm.IRModule:
    return import_onnx(model()).module


def unchanged(module: tvm.IRModule) -> tvm.IRModule:
    return module


def noted(*names: str) -> tuple[Pipeline, list[str]]:
    """A pipeline of steps that do nothing but write down their names."""
    ran: list[str] = []

    def step(name: str) -> Step:
        return Step(name, lambda module: ran.append(name) or module)

    return Pipeline(tuple(map(step, names))), ran


def test_a_pipeline_is_cut_and_extended(imported: tvm.IRModule) -> None:
    pipeline, ran = noted("a", "b", "c", "d")
    assert pipeline.until("c").names == ("a", "b")
    assert pipeline.since("c").names == ("c", "d")
    longer = pipeline.with_steps([Step("x", unchanged), Step("y", unchanged)], before="b")
    assert longer.names == ("a", "x", "y", "b", "c", "d")
    other = pipeline.with_step(Step("c", unchanged))
    assert other.names == pipeline.names and other.steps[2].apply is unchanged
    assert pipeline.with_step(Step("x", unchanged), before="a").names == ("x", *pipeline.names)
    # None of this has run anything, or changed the pipeline.
    assert not ran and pipeline.names == ("a", "b", "c", "d")
    report = pipeline.since("b").run(imported)
    assert ran == ["b", "c", "d"] == list(report.pass_names)
    assert report.module.same_as(imported)


def test_names_that_are_not_there_and_names_that_are_there_twice() -> None:
    pipeline, _ = noted("a", "b")
    for ask in (pipeline.until, pipeline.since, lambda n: pipeline.with_step(Step(n, unchanged))):
        with pytest.raises(ValueError, match="no step is named c; there are a, b"):
            ask("c")
    with pytest.raises(ValueError, match="two steps are named b"):
        pipeline.with_step(Step("b", unchanged), before="a")


def test_what_steps_tell_is_in_the_report(imported: tvm.IRModule) -> None:
    pipeline = Pipeline(
        (
            Step("first", lambda module: Outcome(module, notes=("told",))),
            Step("second", lambda module: Outcome(module, notes=("told again",))),
        )
    )
    seen: list[tuple[str, float]] = []
    report = pipeline.run(imported, progress=lambda name, share: seen.append((name, share)))
    assert report.notes == ("told", "told again")
    assert seen == [("first", 0.0), ("second", 0.5)]


def test_parts_are_worth_the_whole(imported: tvm.IRModule) -> None:
    """Run in two parts by one runner, the report is that of the whole."""
    pipeline, runner = lowering(X86_64_V3), PassRunner()
    graph = pipeline.until(QUANTIZED_BEFORE).run(imported, runner=runner).module
    parts = pipeline.since(QUANTIZED_BEFORE).run(graph, runner=runner)
    whole = pipeline.run(imported)
    assert parts.pass_names == whole.pass_names == pipeline.names
    assert tvm_ffi.structural_equal(parts.module, whole.module)
    assert parts.kernels == whole.kernels and pipeline.names[-1] == SCHEDULE
    assert tvm_ffi.structural_equal(whole.fused, pipeline.until(SCHEDULE).run(imported).module)
    # The borders at which others come in.
    order = [pipeline.names.index(name) for name in (PRUNED_BEFORE, QUANTIZED_BEFORE, SCHEDULE)]
    assert order == sorted(order)


def refused(pipeline: Pipeline, module: tvm.IRModule) -> str:
    with pytest.raises(PassError) as caught:
        pipeline.run(module)
    assert caught.value.exit_code == 70
    return str(caught.value)


def test_a_pass_whose_requirement_is_not_met_is_refused_by_name(imported: tvm.IRModule) -> None:
    pipeline = lowering(X86_64_V3)
    graph = pipeline.until(QUANTIZED_BEFORE).run(imported).module
    # Integers are placed by the layout of kernels.
    told = refused(pipeline.since("lower_integers"), imported)
    assert "pass lower_integers requires convolutions, pools and resizes channels last" in told
    assert "tensor" in told
    # Operators cannot be fused or scheduled.
    assert "pass fuse requires kernels" in refused(pipeline.since("fuse"), graph)
    assert "pass schedule requires kernels" in refused(pipeline.since(SCHEDULE), graph)


def test_a_graph_is_quantised_once(imported: tvm.IRModule) -> None:
    pipeline = lowering(X86_64_V3)
    graph = pipeline.until(QUANTIZED_BEFORE).run(imported).module
    table = backend_of(X86_64_V3).formats
    step = InsertQuantization(dict.fromkeys(observed_tensors(graph, table), (-1.0, 1.0)), table)
    quantized = pipeline.since(QUANTIZED_BEFORE).with_step(
        Step("quantize", step), before=QUANTIZED_BEFORE
    )
    codes = quantized.until("legalize").run(graph).module
    assert quantized.since("legalize").run(codes).kernels
    told = refused(quantized, codes)
    assert "pass quantize requires no products of 8-bit codes" in told
    assert "pass match_signedness requires no products" in refused(
        pipeline.since(QUANTIZED_BEFORE), codes
    )


def test_a_promise_that_is_broken_names_the_pass(imported: tvm.IRModule) -> None:
    class Careless:
        ensures = (CHANNELS_LAST,)

        def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
            return module

    told = refused(Pipeline((Step("careless", Careless()),)), imported)
    assert "pass careless ensures convolutions, pools and resizes channels last" in told


def test_conditions_name_the_first_tensor_that_contradicts(imported: tvm.IRModule) -> None:
    graph = Pipeline(graph_passes()).run(imported).module
    assert CHANNELS_LAST.violation(graph) is None
    product = next(
        binding.var.name
        for block in imported["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call) and binding.value.op.name == "relax.nn.conv2d"
    )
    assert CHANNELS_LAST.violation(imported) == product
    assert KERNELS.violation(lowering(X86_64_V3).run(imported).fused) is None


def recording(seen: list[str]) -> Pipeline:
    """The pipeline of this machine with every step's name written down as it runs."""

    def watched(step: Step) -> Step:
        def apply(module: tvm.IRModule) -> Any:
            seen.append(step.name)
            return step.apply(module)

        return Step(step.name, apply)

    return Pipeline(tuple(map(watched, lowering(NATIVE).steps)))


def test_all_that_compiles_runs_the_steps_of_the_pipeline() -> None:
    source = import_onnx(model())
    seen: list[str] = []
    pipeline = recording(seen)
    names = list(pipeline.names)
    here = replace(workshop(CompileConfig(), NATIVE), pipeline=pipeline)
    compile_graph(source.module, here).close()
    assert seen == names
    graph = pipeline.until(QUANTIZED_BEFORE).run(source.module).module
    seen.clear()
    ObservedModule(graph, here).close()
    assert seen == names[names.index(QUANTIZED_BEFORE) :]


@pytest.mark.parametrize("target", ["native", "cortex-a76"])
def test_no_winograd_reaches_what_is_run_on_the_way(target: str) -> None:
    """On this machine, too, when the module is for another one."""
    module, spec = import_onnx(model(32, 56)).module, get_target(target)
    sparse = CompileConfig(pruning=PruneConfig(sparsity=0.5, calibration="random"))
    for config, expected in (
        (CompileConfig(), "winograd"),
        (CompileConfig(winograd=False), "convolution"),
        (sparse, "convolution"),
    ):
        here = workshop(config, spec)
        assert here.spec.llvm_triple == NATIVE.llvm_triple
        assert here.is_target == (target == "native")
        found = {kernel.template for kernel in here.pipeline.run(module).kernels}
        assert found & {"winograd", "convolution"} == {expected}


def test_tuned_algorithms_reach_what_is_run_on_the_way() -> None:
    module = import_onnx(model(32, 56)).module
    here = workshop(CompileConfig(), NATIVE, algorithms=DirectOnly())
    assert "winograd" not in {kernel.template for kernel in here.pipeline.run(module).kernels}


def test_quantising_compiles_by_the_pipeline_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration, the float model, candidates and their comparison: each runs its steps."""
    written: list[object] = []
    write = observe.write_module
    monkeypatch.setattr(
        observe, "write_module", lambda *a, **b: written.append(a) or write(*a, **b)
    )
    source = import_onnx(model())
    seen: list[str] = []
    pipeline = recording(seen)
    graph = pipeline.until(QUANTIZED_BEFORE).run(source.module).module
    here = replace(workshop(CompileConfig(threads=1), NATIVE), pipeline=pipeline, is_target=False)
    options = QuantizationConfig(format="int8", calibration="random", samples=4)
    quantized = Quantizer(options, NATIVE, source.signature, source.domains, here)(graph)
    assert len(written) == seen.count(SCHEDULE) >= 4
    # What comes back are passes: with them the pipeline is one like any other.
    whole = lowering(NATIVE).with_steps(quantized.steps, before=QUANTIZED_BEFORE)
    assert "quantize" in whole.names and whole.run(source.module).kernels
    assert quantized.report is not None and quantized.report.layers[0].computes == "integer"


def test_who_interrupts_a_pass_is_no_fault_of_it() -> None:
    """The interrupt comes while TVM has called a function of the pass."""

    @tvm.tirx.transform.prim_func_pass(opt_level=0)
    def interrupted(function: PrimFunc, _module: tvm.IRModule, _context: object) -> PrimFunc:
        raise KeyboardInterrupt

    module = tvm.IRModule({"main": PrimFunc([], tirx.Evaluate(0))})
    with pytest.raises(KeyboardInterrupt):
        PassRunner().run("slow", interrupted, module)
