"""Operators and forms that few models have, against the standard's own evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tests.compiler.frontends.small_models import model, random, run, value
from tinsmith.compiler.api import compile_to
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.module.loader import load


def _node(operator: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(operator, names, outputs.split(), **attributes)


def _model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray],
    opset: int,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """All results of `nodes` that no other node reads are outputs, but for names with a dash."""
    infos = [
        value(name, list(array.shape), helper.np_dtype_to_tensor_dtype(array.dtype))
        for name, array in inputs.items()
    ]
    read = {name for node in nodes for name in node.input}
    outputs = [
        name for node in nodes for name in node.output if name not in read and "-" not in name
    ]
    proto = model(nodes, infos, outputs, constants, opset=opset)
    for domain in domains:
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    return proto


def _same(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> None:
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert one.dtype == other.dtype, index
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5, err_msg=f"output {index}")


def _agrees_with_the_evaluator(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray],
    opset: int,
) -> None:
    proto = _model(nodes, inputs, constants, opset)
    with np.errstate(all="ignore"):
        expected = ReferenceEvaluator(proto).run(None, dict(inputs))
    _same(run(import_onnx(proto), *inputs.values()), expected)


def test_convolutions_with_bent_windows() -> None:
    inputs = {"x": random((2, 4, 6, 5)), "far": random((2, 36, 3, 3), 1) * 3}
    inputs |= {"near": random((2, 16, 5, 4), 2), "m": random((2, 8, 5, 4), 3)}
    constants = {"w": random((3, 4, 3, 3), 4), "b": random((3,), 5), "g": random((4, 2, 2, 2), 6)}
    plain = {"pads": [1, 1, 1, 1], "strides": [2, 2]}
    constants["plain"] = np.zeros((2, 18, 3, 3), np.float32)
    nodes = [
        _node("DeformConv", "x g near - m", "y0", group=2, offset_group=2),
        _node("DeformConv", "x w far b", "y1", offset_group=2, **plain),
        _node("DeformConv", "x w plain b", "y2", **plain),
    ]
    _agrees_with_the_evaluator(nodes, inputs, constants, 19)


def test_blocks_into_images_and_updates_into_caches() -> None:
    inputs = {"a": random((1, 8, 4)), "b": random((2, 18, 20), 1), "c": random((1, 4, 12), 2)}
    inputs |= {"cache": random((2, 5, 3), 3), "new": random((2, 2, 3), 4), "at": np.array([1, 3])}
    inputs |= {"late": np.array([4, 3])}
    constants = {
        name: np.array(sizes)
        for name, sizes in (
            ("4x4", [4, 4]), ("4x5", [4, 5]), ("5x5", [5, 5]), ("2x2", [2, 2]), ("3x3", [3, 3]),
        )
    }  # fmt: skip
    nodes = [
        _node("Col2Im", "a 4x4 2x2", "y0", strides=[2, 2]),
        _node("Col2Im", "b 4x5 3x3", "y1", pads=[1, 1, 1, 1]),
        _node("Col2Im", "c 5x5 2x2", "y2", dilations=[2, 1]),
        _node("TensorScatter", "cache new at", "y3"),
        _node("TensorScatter", "cache new late", "y4", mode="circular"),
        _node("TensorScatter", "cache new", "y5", axis=1),
    ]
    _agrees_with_the_evaluator(nodes, inputs, constants, 24)


def test_running_products_powers_and_parts_without_entries() -> None:
    inputs = {"x": random((3, 5)), "i": np.array([[2, -3, 0, 5, -1]]), "value": np.float32(4)}
    inputs |= {"e": np.array([[3, 2, 0, 1, 5]])}
    constants = {"axis": np.array(1), "sizes": np.array([2, 0, 3]), "pads": np.array([1, 0, 0, 2])}
    constants |= {"three": np.array(3)}
    nodes = [
        *(_node("CumProd", "x axis", f"p{i}", exclusive=i % 2, reverse=i // 2) for i in range(4)),
        _node("Split", "x sizes", "s0 s1 s2", axis=1),
        _node("Pow", "i e", "w0"),
        _node("Pow", "i three", "w1"),
        _node("Pad", "x pads value", "d"),
        _node("EyeLike", "i", "eye", k=1, dtype=TensorProto.FLOAT),
    ]
    _agrees_with_the_evaluator(nodes, inputs, constants, 26)


def test_normalisation_over_an_even_number_of_channels() -> None:
    # The evaluator forgets channels where there are more than images.
    x = random((5, 5, 3, 2))
    nodes = [_node("LRN", "x", f"y{size}", size=size, alpha=0.3) for size in (2, 3, 4)]
    _agrees_with_the_evaluator(nodes, {"x": x}, {}, 13)


def test_regions_are_scaled_before_they_are_shifted() -> None:
    regions = np.array([[1, 1, 6, 7], [0, 0, 9, 9], [-2, -1, 3, 12]], np.float32)
    inputs = {"x": random((2, 2, 9, 9)), "r": regions, "n": np.array([0, 1, 1])}
    common = {"output_height": 3, "output_width": 2, "spatial_scale": 0.7}
    nodes = [
        _node(
            "RoiAlign", "x r n", f"y{kind}{ratio}", sampling_ratio=ratio,
            coordinate_transformation_mode=kind, **common,
        )
        for kind in ("half_pixel", "output_half_pixel")
        for ratio in (0, 2)
    ]  # fmt: skip
    _agrees_with_the_evaluator(nodes, inputs, {}, 16)


def test_four_bits_computed_at_run_time() -> None:
    nodes, constants = [], {"s": np.array(0.3, np.float32)}
    for name in ("int4", "uint4"):
        dtype = getattr(TensorProto, name.upper())
        nodes += [
            _node("QuantizeLinear", "x s", f"q{name}", output_dtype=dtype),
            _node("DequantizeLinear", f"q{name} s", f"y{name}"),
        ]
    _agrees_with_the_evaluator(nodes, {"x": random((3, 8)) * 5}, constants, 21)


def test_what_has_no_kernel_is_evaluated(tmp_path: Any) -> None:
    inputs = {"x": random((2, 3, 3)), "image": random((1, 2, 6, 6), 1)}
    constants = {"r": np.array([[0, 0, 4, 5]], np.float32), "n": np.array([0])}
    nodes = [
        _node("Relu", "x", "h"),
        _node("Det", "h", "y0"),
        _node("RoiAlign", "image r n", "y1", mode="max", output_height=2, output_width=2,
              sampling_ratio=2),
    ]  # fmt: skip
    proto = _model(nodes, inputs, constants, 16)
    expected = ReferenceEvaluator(proto).run(None, dict(inputs))
    report = compile_to(
        proto, tmp_path / "m", golden=False, runner=False, static_library=False, threads=1
    )
    assert any("no kernel is there: 1 Det, 1 RoiAlign" in note for note in report.notes)
    with load(tmp_path / "m", threads=1) as module:
        _same(module.run(list(inputs.values())), expected)


def _agrees_with_onnxruntime(proto: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    proto.ir_version = min(proto.ir_version, 10)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    _same(run(import_onnx(proto), *inputs.values()), session.run(None, dict(inputs)))


def test_caches_whose_lengths_are_given_at_run_time() -> None:
    inputs = {"q": random((2, 1, 64)), "k": random((2, 1, 32), 1), "v": random((2, 1, 32), 2)}
    inputs |= {"pk": random((2, 2, 5, 16), 3), "pv": random((2, 2, 5, 16), 4)}
    inputs |= {"last": np.array([5, 3], np.int32), "all": np.array(6, np.int32)}
    inputs |= {"full": np.array([5, 5], np.int32), "bias": random((2, 1, 1, 6), 5)}
    constants = {"c": np.cos(random((20, 8))), "s": np.sin(random((20, 8))), "sink": random((4,))}
    shared: dict[str, Any] = {"num_heads": 4, "kv_num_heads": 2, "domain": "com.microsoft"}
    operator = "GroupQueryAttention"
    nodes = [
        _node(operator, "q k v pk pv full all c s", "y0 k0 v0", do_rotary=1, **shared),
        _node(operator, "q k v pk pv last all c s", "y1 k-1 v-1", do_rotary=1, **shared),
        _node(operator, "q k v pk pv last all", "y2 k-2 v-2", local_window_size=2, **shared),
        _node(operator, "q k v pk pv full all", "y3 k-3 v-3", softcap=3.0, **shared),
        _node(operator, "q k v pk pv full all", "y4 k-4 v-4", smooth_softmax=1, **shared),
        _node(operator, "q k v pk pv full all - - - bias", "y5 k-5 v-5", **shared),
        _node(operator, "q k v pk pv full all - - - - sink", "y6 k-6 v-6", **shared),
    ]
    proto = _model(nodes, inputs, constants, 17, ["com.microsoft"])
    _agrees_with_onnxruntime(proto, inputs)


def test_old_names_blocks_of_rows_and_channels_last() -> None:
    inputs = {"ids": np.array([[1, 3, 0]]), "x": random((3, 4))}
    inputs |= {"bytes": np.arange(48, dtype=np.uint8).reshape(1, 4, 6, 2) * 5}
    seeds = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {
        "four": seeds.integers(0, 256, (10, 16)).astype(np.uint8),
        "eight": seeds.integers(0, 256, (10, 32)).astype(np.uint8),
        "s": random((10, 2), 2),
        "zero8": seeds.integers(0, 256, (10, 2)).astype(np.uint8),
        "zero4": seeds.integers(0, 256, (10, 1)).astype(np.uint8),
        "k": np.array(1),
    }
    blocks = {"block_size": 16, "quantize_axis": 1, "domain": "com.microsoft"}
    nodes = [
        _node("GatherBlockQuantized", "four ids s", "y0", bits=4, **blocks),
        _node("GatherBlockQuantized", "four ids s zero4", "y1", bits=4, **blocks),
        _node("GatherBlockQuantized", "eight ids s zero8", "y2", bits=8, **blocks),
        _node("Trilu", "x k", "y3", upper=0, domain="com.microsoft"),
        _node("NhwcMaxPool", "bytes", "largest", kernel_shape=[2, 3], domain="com.microsoft"),
        _node("Cast", "largest", "y4", to=TensorProto.FLOAT),
    ]
    _agrees_with_onnxruntime(_model(nodes, inputs, constants, 17, ["com.microsoft"]), inputs)


def test_nearest_neighbours_of_version_10() -> None:
    inputs = {"image": random((1, 1, 7, 8))}
    constants = {
        "less": np.array([1, 1, 0.6, 0.45], np.float32),
        "both": np.array([1, 1, 0.6, 1.7], np.float32),
    }
    nodes = [_node("Resize", f"image {name}", f"y{name}") for name in constants]
    _agrees_with_onnxruntime(_model(nodes, inputs, constants, 10), inputs)


def test_features_in_tables() -> None:
    inputs = {"x": np.array([[1, np.nan], [np.nan, 2]], np.float32), "i": np.array([[1], [5]])}
    learning: dict[str, Any] = {"domain": "ai.onnx.ml"}
    nan = float("nan")
    nodes = [
        _node("Imputer", "x", "y0", imputed_value_floats=[5.0, 6.0], replaced_value_float=nan,
              **learning),
        _node("OneHotEncoder", "i", "y1", cats_int64s=[1, 3, 5], **learning),
        _node("FeatureVectorizer", "x x", "y2", inputdimensions=[2, 1], **learning),
    ]  # fmt: skip
    _agrees_with_onnxruntime(_model(nodes, inputs, {}, 17, ["ai.onnx.ml"]), inputs)


def test_reductions_of_nothing_of_integers_and_of_truth_values() -> None:
    inputs = {"x": random((2, 3, 4)), "i": np.arange(12, dtype=np.int32).reshape(3, 4) - 3}
    inputs |= {"positive": np.abs(random((3, 4), 1)), "t": random((3, 4), 2) > 0}
    constants = {"last": np.array([-1])}
    nodes = [
        *(
            _node(f"Reduce{kind}", "positive" if "Log" in kind else "x", f"n{kind}",
                  noop_with_empty_axes=1)
            for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Sum", "SumSquare")
        ),
        *(_node(f"Reduce{kind}", "i last", f"i{kind}") for kind in ("Max", "Mean", "Sum")),
        *(_node(f"Reduce{kind}", "t last", f"t{kind}", keepdims=0) for kind in ("Max", "Min")),
    ]  # fmt: skip
    _agrees_with_the_evaluator(nodes, inputs, constants, 20)


@pytest.mark.parametrize("opset", [1, 10, 11])
def test_largest_entries(opset: int) -> None:
    inputs = {"x": random((3, 6))}
    given: dict[str, Any] = {"k": 2} if opset == 1 else {}
    nodes = [_node("TopK", "x" if opset == 1 else "x k", "v i", **given)]
    if opset == 11:
        nodes.append(_node("TopK", "x none", "v0 i0"))
        nodes.append(_node("TopK", "x k", "v2 i2", sorted=0, largest=0, axis=0))
    constants = {} if opset == 1 else {"k": np.array([2]), "none": np.array([0])}
    proto = _model(nodes, inputs, constants, opset)
    values, places, *rest = run(import_onnx(proto), *inputs.values())
    order = np.argsort(-inputs["x"], axis=1)[:, :2]
    np.testing.assert_array_equal(places, order)
    np.testing.assert_array_equal(values, np.take_along_axis(inputs["x"], order, 1))
    if opset == 11:
        assert rest[0].shape == rest[1].shape == (3, 0)
        np.testing.assert_array_equal(rest[2], np.sort(inputs["x"], axis=0)[:2])


def test_whole_tensors_are_not_scattered() -> None:
    inputs = {"x": random((3, 4)), "u": random((1, 3, 4), 1)}
    proto = _model(
        [_node("ScatterND", "x i u", "y")], inputs, {"i": np.zeros((1, 0), np.int64)}, 18
    )
    with pytest.raises(ModelError, match="whole tensor"):
        import_onnx(proto)
