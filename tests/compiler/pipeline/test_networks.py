"""The whole pipeline: small networks against onnxruntime, verification, dumps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax

from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.errors import ConfigError, PassError
from tinsmith.compiler.frontends.onnx import import_onnx
from tinsmith.compiler.module.write.vm import TO_INSTRUCTIONS
from tinsmith.compiler.pipeline import PassRunner, Pipeline, graph_passes, lowering
from tinsmith.compiler.preparation import Clock, prepare
from tinsmith.targets.x86.specs import X86_64_V3

onnxruntime = pytest.importorskip("onnxruntime")


class _Network:
    """A small ONNX graph, written node by node."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = list(shape)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.random = np.random.default_rng(0)

    def weight(self, *shape: int, low: float = -0.5, high: float = 0.5) -> str:
        return self.value(self.random.uniform(low, high, shape).astype("float32"))

    def value(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, *inputs: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def conv(self, x: str, ci: int, co: int, k: int, group: int = 1, **attributes: object) -> str:
        attributes.setdefault("pads", [k // 2] * 4)
        return self.node(
            "Conv",
            x,
            self.weight(co, ci // group, k, k),
            self.weight(co),
            group=group,
            **attributes,
        )

    def norm(self, x: str, channels: int) -> str:
        parameters = [self.weight(channels) for _ in range(3)]
        variance = self.weight(channels, low=0.5, high=2.0)
        return self.node("BatchNormalization", x, *parameters, variance)

    def model(self, output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.weights,
        )
        opset = [helper.make_opsetid("", 17)]
        return onnx.shape_inference.infer_shapes(
            helper.make_model(graph, opset_imports=opset, ir_version=8)
        )


def _residual() -> onnx.ModelProto:
    n = _Network((1, 3, 17, 19))
    y = n.node("Relu", n.norm(n.conv("x", 3, 24, 3, strides=[2, 2]), 24))
    z = n.node("Relu", n.norm(n.conv(y, 24, 7, 1), 7))
    z = n.norm(n.conv(z, 7, 24, 3), 24)
    y = n.node("Relu", n.node("Add", z, y))
    y = n.node("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = n.node("Flatten", n.node("GlobalAveragePool", y))
    return n.model(n.node("Gemm", y, n.weight(10, 24), n.weight(10), transB=1))


def _mobile() -> onnx.ModelProto:
    n = _Network((2, 3, 16, 16))
    six = [n.value(np.float32(bound)) for bound in (0, 6)]
    y = n.node("Clip", n.norm(n.conv("x", 3, 16, 3, strides=[2, 2]), 16), *six)
    y = n.node("Clip", n.norm(n.conv(y, 16, 16, 3, group=16), 16), *six)
    # Squeeze and excite, with a hard sigmoid.
    gate = n.node("Relu", n.conv(n.node("GlobalAveragePool", y), 16, 4, 1))
    gate = n.node("HardSigmoid", n.conv(gate, 4, 16, 1))
    y = n.node("Mul", y, gate)
    y = n.conv(y, 16, 10, 1)
    return n.model(n.node("HardSwish", n.conv(y, 10, 20, 3, group=5)))


def _pyramid() -> onnx.ModelProto:
    n = _Network((1, 3, 24, 16))
    a = n.node("Relu", n.conv("x", 3, 8, 3, strides=[2, 2]))
    b = n.node("Sigmoid", n.conv(a, 8, 12, 3, strides=[2, 2]))
    scales = n.value(np.array([1, 1, 2, 2], "float32"))
    up = n.node(
        "Resize",
        b,
        "",
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    up = n.node("Pad", up, n.value(np.array([0, 0, 0, 0, 0, 0, 1, 1])))
    up = n.node("AveragePool", up, kernel_shape=[2, 2], strides=[1, 1])
    y = n.node("Concat", a, up, axis=1)
    y = n.node("ConvTranspose", y, n.weight(20, 6, 2, 2), n.weight(6), strides=[2, 2])
    y = n.node("Relu", n.norm(y, 6))
    y = n.node("ConvTranspose", y, n.weight(6, 2, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1])
    return n.model(n.node("Sigmoid", y))


def _attention() -> onnx.ModelProto:
    n = _Network((1, 12, 32))

    def linear(x: str, rows: int, columns: int) -> str:
        return n.node("Add", n.node("MatMul", x, n.weight(rows, columns)), n.weight(columns))

    heads = n.value(np.array([1, 12, 4, 8]))
    q, k, v = (n.node("Reshape", linear("x", 32, 32), heads) for _ in range(3))
    q, v = (n.node("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    k = n.node("Transpose", k, perm=[0, 2, 3, 1])
    scores = n.node("Div", n.node("MatMul", q, k), n.value(np.float32(np.sqrt(8))))
    mixed = n.node("MatMul", n.node("Softmax", scores, axis=-1), v)
    mixed = n.node("Transpose", mixed, perm=[0, 2, 1, 3])
    y = n.node("Add", linear(n.node("Reshape", mixed, n.value(np.array([1, 12, 32]))), 32, 32), "x")
    y = n.node("LayerNormalization", y, n.weight(32), n.weight(32), axis=-1)
    h = linear(y, 32, 64)
    gate = n.node("Erf", n.node("Div", h, n.value(np.float32(np.sqrt(2)))))
    h = n.node("Mul", h, n.node("Add", gate, n.value(np.float32(1))))
    h = n.node("Mul", h, n.value(np.float32(0.5)))
    return n.model(n.node("Add", linear(h, 64, 32), y))


def _one_dimensional() -> onnx.ModelProto:
    n = _Network((1, 5, 40))
    y = n.node("Conv", "x", n.weight(16, 5, 5), n.weight(16), strides=[2], pads=[2, 2])
    y = n.node("PRelu", n.norm(y, 16), n.weight(16, 1))
    y = n.node("MaxPool", y, kernel_shape=[2], strides=[2])
    y = n.node("Transpose", y, perm=[0, 2, 1])
    y = n.node("MatMul", y, n.weight(16, 9))
    return n.model(n.node("LogSoftmax", y, axis=-1))


_NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "residual": _residual,
    "mobile": _mobile,
    "pyramid": _pyramid,
    "attention": _attention,
    "one_dimensional": _one_dimensional,
}


def _run(module: tvm.IRModule, x: np.ndarray) -> np.ndarray:
    """The output for `x`; the kernels are scheduled, so only the calls are left to lower."""
    executable = tvm.compile(
        module,
        target=tvm.target.Target(X86_64_V3.tvm_target_config()),
        relax_pipeline=TO_INSTRUCTIONS,
    )
    machine = relax.VirtualMachine(executable, tvm.cpu())
    return machine["main"](tvm.runtime.tensor(x)).numpy()


@pytest.mark.parametrize("name", sorted(_NETWORKS))
def test_networks_agree_with_onnxruntime(name: str) -> None:
    model = _NETWORKS[name]()
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
    found = _layout_operators(_NETWORKS[name]())
    assert found.count("relax.permute_dims") == transposes


def test_batch_norm_and_bias_leave_one_addition_per_convolution() -> None:
    found = _layout_operators(_residual())
    assert "relax.nn.batch_norm" not in found and "relax.multiply" not in found
    # Three convolutions and the classifier with a bias each, and the residual.
    assert found.count("relax.add") == 5


def test_dumps_every_pass_and_reports_it(tmp_path: Path) -> None:
    steps: list[tuple[str, float]] = []
    report = lowering(X86_64_V3).run(
        import_onnx(_residual()).module,
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
        lowering(X86_64_V3).run(import_onnx(_residual()).module, dump=blocked)


def test_an_ill_formed_module_names_the_pass_and_those_before() -> None:
    module = import_onnx(_residual()).module
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
        PassRunner().run("careless", fail, import_onnx(_residual()).module)
    assert str(caught.value).startswith("pass careless failed: no such thing (this is a bug")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 70


def test_what_a_pass_refuses_is_told_as_it_is() -> None:
    def refuse(module: tvm.IRModule) -> tvm.IRModule:
        raise ConfigError("the user can mend that")

    with pytest.raises(ConfigError, match=r"^the user can mend that$"):
        PassRunner().run("strict", refuse, import_onnx(_residual()).module)


@pytest.mark.parametrize("winograd", [True, False])
def test_winograd_can_be_turned_off(winograd: bool) -> None:
    n = _Network((1, 32, 56, 56))
    model = n.model(n.conv("x", 32, 32, 3))
    config = CompileConfig(golden=False, winograd=winograd)
    kernels = prepare(model, config, X86_64_V3, Clock(None), None).pipeline.kernels
    found = [k.arithmetic for k in kernels if k.template == "winograd"]
    assert found == (["float32 F(4x4)"] if winograd else [])
