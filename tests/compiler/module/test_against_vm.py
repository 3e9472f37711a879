"""A self-contained module computes what TVM's virtual machine computes, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_networks import NETWORK_INPUT, lowered, network_model, random_inputs, reference
from tvm import relax
from tvm.relax import op

from tinsmith.compiler.module.loader import load
from tinsmith.compiler.module.write.writer import write_module

F = "float32"
CASES: dict[str, tuple[Callable[..., relax.Expr], tuple, int]] = {
    "sum to a scalar": (op.sum, (((4, 5), F),), 1),
    "softmax": (op.nn.softmax, (((64, 1000), F),), 1),
    "transposed convolution": (
        lambda x, w: op.nn.conv2d_transpose(x, w, strides=2),
        (((1, 4, 8, 8), F), ((4, 5, 3, 3), F)), 1,
    ),
    "matrix product": (op.matmul, (((13, 7), F), ((7, 9), F)), 1),
    "boolean output": (lambda x: op.greater(x, relax.const(0.0, F)), (((4, 5), F),), 1),
    "half precision": (
        lambda x: op.add(op.astype(x, "float16"), relax.const(np.float16(1.5))),
        (((4, 5), F),), 1,
    ),
    "bfloat16": (
        lambda x: op.astype(op.add(op.astype(x, "bfloat16"), op.astype(x, "bfloat16")), F),
        (((4, 5), F),), 1,
    ),
    "cumulative sum": (lambda x: op.cumsum(x, axis=-1), (((4, 100), F),), 1),
    "scatter": (
        lambda x, i, u: op.scatter_elements(x, i, u, axis=0),
        (((10, 4), F), ((3, 4), "int64"), ((3, 4), F)), 1,
    ),
    "split": (lambda x: op.split(x, 2, axis=1), (((3, 8), F),), 2),
    "input returned": (lambda x: x, (((4, 5), F),), 1),
    "input and twice the same": (
        lambda x: relax.Tuple([op.add(x, x), x]), (((4, 5), F),), 2,
    ),
    "constant returned": (lambda _: relax.const(np.arange(6, dtype=F)), (((1,), F),), 1),
    "mathematical functions": (
        lambda x: op.erf(op.power(op.abs(op.sin(x)), op.exp(x))), (((4, 500), F),), 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators(name: str, tmp_path: Path) -> None:
    build, inputs, outputs = CASES[name]
    model = lowered(build, inputs, outputs)
    arrays = random_inputs(inputs)
    written = write_module(model, tmp_path / "m", forms=("shared",))
    assert written.manifest.form == "self-contained"
    with load(written.path) as module:
        results = module.run(arrays)
    for result, expected in zip(results, reference(model, arrays), strict=True):
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("embed", [True, False])
def test_network(embed: bool, tmp_path: Path) -> None:
    model = network_model()
    written = write_module(model, tmp_path / "m", forms=("shared",), embed_weights=embed)
    assert (tmp_path / "m" / "weights.bin").exists() != embed
    with load(written.path) as module:
        for seed in range(3):
            arrays = random_inputs(NETWORK_INPUT, seed)
            for result, expected in zip(module.run(arrays), reference(model, arrays), strict=True):
                np.testing.assert_array_equal(result, expected)


def test_equal_weights_are_stored_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(F)

    def build(x: relax.Expr) -> relax.Expr:
        return op.matmul(op.matmul(x, relax.const(values)), relax.const(values.copy()))

    model = lowered(build, (((8, 64), F),))
    written = write_module(model, tmp_path / "m", forms=("shared",))
    assert written.manifest.weights_bytes == values.nbytes
