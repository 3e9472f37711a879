"""The whole pipeline: small networks against onnxruntime, verification, dumps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import tvm
from network_models import NETWORKS, Network, residual
from tvm import relax

from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.errors import ConfigError, PassError
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.module.write.vm import TO_INSTRUCTIONS
from tinsmith.compiler.pipeline import PassRunner, Pipeline, graph_passes, lowering
from tinsmith.compiler.preparation import Clock, prepare
from tinsmith.targets.x86.specs import X86_64_V3

onnxruntime = pytest.importorskip("onnxruntime")


def _run(module: tvm.IRModule, x: np.ndarray) -> np.ndarray:
    """The output for `x`; the kernels are scheduled, so only the calls are left to lower."""
    executable = tvm.compile(
        module,
        target=tvm.target.Target(X86_64_V3.tvm_target_config()),
        relax_pipeline=TO_INSTRUCTIONS,
    )
    machine = relax.VirtualMachine(executable, tvm.cpu())
    return machine["main"](tvm.runtime.tensor(x)).numpy()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_networks_agree_with_onnxruntime(name: str) -> None:
    model = NETWORKS[name]()
    imported = import_onnx(model)
    report = lowering(X86_64_V3).run(imported.module)
    lowered = report.module
    x = np.random.default_rng(1).standard_normal(imported.input_shapes[0]).astype("float32")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, {"x": x})[0]
    actual = _run(lowered, x)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.ptp(expected))
    assert {kernel.name for kernel in report.kernels} == {
        variable.name_hint
        for variable, function in lowered.functions_items()
        if isinstance(function, tvm.tirx.PrimFunc)
    }


def _layout_operators(model: onnx.ModelProto) -> list[str]:
    module = Pipeline(graph_passes()).run(import_onnx(model).module).module
    return [
        binding.value.op.name
        for block in module["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call)
    ]


@pytest.mark.parametrize(("name", "transposes"), [("residual", 0), ("mobile", 1), ("pyramid", 3)])
def test_few_transposes_remain(name: str, transposes: int) -> None:
    """None between convolutions: one per strided transposed convolution, one at an output."""
    found = _layout_operators(NETWORKS[name]())
    assert found.count("relax.permute_dims") == transposes


def test_batch_norm_and_bias_leave_one_addition_per_convolution() -> None:
    found = _layout_operators(residual())
    assert "relax.nn.batch_norm" not in found and "relax.multiply" not in found
    # Three convolutions and the classifier with a bias each, and the residual.
    assert found.count("relax.add") == 5


def test_dumps_every_pass_and_reports_it(tmp_path: Path) -> None:
    steps: list[tuple[str, float]] = []
    report = lowering(X86_64_V3).run(
        import_onnx(residual()).module,
        dump=tmp_path / "dump",
        progress=lambda name, share: steps.append((name, share)),
    )
    names = [f"{number:02d}_{name}.py" for number, name in enumerate(report.pass_names)]
    assert sorted(path.name for path in (tmp_path / "dump").iterdir()) == names
    assert "conv2d" in (tmp_path / "dump" / names[0]).read_text()
    assert [name for name, _ in steps] == list(report.pass_names)
    assert [share for _, share in steps] == sorted(share for _, share in steps)
    assert all(timing.seconds >= 0 for timing in report.passes)
    assert report.seconds > 0


def test_a_dump_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigError, match="--dump"):
        lowering(X86_64_V3).run(import_onnx(residual()).module, dump=blocked)


def test_an_ill_formed_module_names_the_pass_and_those_before() -> None:
    module = import_onnx(residual()).module
    runner = PassRunner()
    module = runner.run("first", graph_passes()[0][1], module)

    def lose_a_definition(good: tvm.IRModule) -> tvm.IRModule:
        main = good["main"]
        block = main.body.blocks[0]
        body = relax.SeqExpr([relax.DataflowBlock(list(block.bindings)[1:])], main.body.body)
        broken = relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
        return tvm.IRModule({"main": broken})

    with pytest.raises(PassError, match=r"^pass second failed: the module after it is") as caught:
        runner.run("second", lose_a_definition, module)
    assert caught.value.passes_before == ("first",)


def test_a_failing_pass_is_named_without_a_backtrace() -> None:
    def fail(module: tvm.IRModule) -> tvm.IRModule:
        raise ValueError("no such thing\nand a second line")

    with pytest.raises(PassError) as caught:
        PassRunner().run("careless", fail, import_onnx(residual()).module)
    assert str(caught.value).startswith("pass careless failed: no such thing (this is a bug")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 70


def test_what_a_pass_refuses_is_told_as_it_is() -> None:
    def refuse(module: tvm.IRModule) -> tvm.IRModule:
        raise ConfigError("the user can mend that")

    with pytest.raises(ConfigError, match=r"^the user can mend that$"):
        PassRunner().run("strict", refuse, import_onnx(residual()).module)


@pytest.mark.parametrize("winograd", [True, False])
def test_winograd_can_be_turned_off(winograd: bool) -> None:
    n = Network((1, 32, 56, 56))
    model = n.model(n.conv("x", 32, 32, 3))
    config = CompileConfig(golden=False, winograd=winograd)
    kernels = prepare(model, config, X86_64_V3, Clock(None), None).pipeline.kernels
    found = [k.arithmetic for k in kernels if k.template == "winograd"]
    assert found == (["float32 F(4x4)"] if winograd else [])
