"""`MatMulNBits`: kernels read the codes of its weights where they can."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.compiler.frontends.small_models import execute
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pipeline import Pipeline, graph_passes, kernel_passes
from tinsmith.targets.registry import get_target

_RANDOM = np.random.default_rng(3)
_SPEC = get_target("x86-64-v3")


def _model(
    rows: int, columns: int, bits: int, block: int, shape: tuple[int, ...], **more: np.ndarray
) -> tuple[onnx.ModelProto, np.ndarray]:
    """A model and its input; `more` are further inputs: `z` zero points, `c` a bias."""
    blocks = -(-rows // block)
    stored = {
        "b": _RANDOM.integers(0, 256, (columns, blocks, block * bits // 8)).astype(np.uint8),
        "s": _RANDOM.uniform(0.01, 0.02, columns * blocks).astype(np.float32),
        **more,
    }
    names = ["x", "b", "s", "z" if "z" in stored else "", "", "c" if "c" in stored else ""]
    while not names[-1]:
        names.pop()
    attributes = {"K": rows, "N": columns, "bits": bits, "block_size": block}
    graph = helper.make_graph(
        [helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", **attributes)],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    data = _RANDOM.standard_normal(shape).astype(np.float32)
    return helper.make_model(graph, opset_imports=imports, ir_version=8), data


def _packed(count: int, bits: int, columns: int) -> np.ndarray:
    return _RANDOM.integers(0, 256, columns * -(-count * bits // 8)).astype(np.uint8)


@pytest.mark.parametrize(
    ("rows", "columns", "bits", "block", "shape", "asymmetric"),
    [
        (64, 48, 4, 32, (2, 3, 64), False),
        (70, 33, 4, 16, (1, 70), False),
        (64, 9, 8, 32, (3, 64), False),
        (40, 9, 4, 64, (40,), False),
        (70, 9, 4, 16, (2, 70), True),
        (64, 9, 8, 32, (2, 64), True),
    ],
)
def test_agrees_with_onnxruntime(
    rows: int, columns: int, bits: int, block: int, shape: tuple, asymmetric: bool
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    more = {"c": _RANDOM.standard_normal(columns).astype(np.float32)}
    if asymmetric:
        more["z"] = _packed(-(-rows // block), bits, columns)
    proto, data = _model(rows, columns, bits, block, shape, **more)
    (expected,) = runtime.InferenceSession(proto.SerializeToString()).run(None, {"x": data})
    module = import_onnx(proto).module
    assert "tinsmith.decompress" in module.script()
    module = Pipeline((*graph_passes(), *kernel_passes(_SPEC))).run(module).module
    (actual,) = execute(module, data)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1e-5 * np.ptp(expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"s": np.ones(5, np.float32)}, "the scale has 5 elements instead of 18"),
        ({"s": np.full(18, np.nan, np.float32)}, "a scale is not finite"),
        ({"b": np.zeros(7, np.uint8)}, "the weight has 7 bytes instead of 288"),
        ({"z": np.zeros(5, np.uint8)}, "the zero point has 5 bytes instead of 9"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changed: dict, message: str) -> None:
    proto, _ = _model(64, 9, 4, 32, (2, 64), **changed)
    with pytest.raises(ModelError, match=message):
        import_onnx(proto)


def test_other_widths_are_refused() -> None:
    proto, _ = _model(64, 9, 2, 32, (2, 64))
    with pytest.raises(ModelError, match="2 bits are not supported"):
        import_onnx(proto)
