"""Own converters against ONNX Runtime and numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.compiler.frontends.small_models import model, original, random, run, value
from tinsmith.compiler.errors import ModelError
from tinsmith.compiler.frontends.onnx.converters.spectrum import transform_matrix
from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.interpolation import Sampling, interpolation_matrix


def _one(
    operator: str,
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray] | None = None,
    outputs: int = 1,
    opset: int = 18,
    order: tuple[str, ...] = (),
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node; `order` lists its inputs where it is not inputs, then constants."""
    names = [f"y{index}" for index in range(outputs)]
    arguments = order or (*inputs, *(constants or {}))
    node = helper.make_node(operator, arguments, names, **attributes)
    infos = [
        value(name, list(array.shape), helper.np_dtype_to_tensor_dtype(array.dtype))
        for name, array in inputs.items()
    ]
    return model([node], infos, names, constants, opset=opset)


def _agrees(proto: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> None:
    """Ours equals ONNX Runtime's."""
    onnxruntime = pytest.importorskip("onnxruntime")
    imported = import_onnx(proto)
    session = onnxruntime.InferenceSession(
        original(imported).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, dict(inputs))
    for ours, theirs in zip(run(imported, *inputs.values()), expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    "coordinates",
    ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"],
)
@pytest.mark.parametrize("size", [(4, 5), (12, 10), (9, 7), (1, 3)])
def test_resize(mode: str, coordinates: str, size: tuple[int, int]) -> None:
    inputs = {"x": random((1, 2, 6, 5))}
    sizes = np.array([1, 2, *size])
    proto = _one(
        "Resize",
        inputs,
        {"sizes": sizes},
        order=("x", "", "", "sizes"),
        opset=19,
        mode=mode,
        coordinate_transformation_mode=coordinates,
    )
    _agrees(proto, inputs)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_with_antialiasing(mode: str) -> None:
    inputs = {"x": random((1, 1, 8, 8))}
    scales = np.array([1, 1, 0.5, 0.5], np.float32)
    proto = _one(
        "Resize", inputs, {"scales": scales}, order=("x", "", "scales"), mode=mode, antialias=1
    )
    _agrees(proto, inputs)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_interpolation_weights_sum_to_one(mode: str, antialias: bool) -> None:
    how = Sampling(mode, "half_pixel", "floor", -0.75, True, antialias, 0.0)
    matrix = interpolation_matrix(11, 5, 5 / 11, how)
    np.testing.assert_allclose(matrix.sum(axis=0), 1.0)


def test_unknown_resize_modes_are_named() -> None:
    proto = _one(
        "Resize",
        {"x": random((1, 1, 4, 4))},
        {"sizes": np.array([1, 1, 3, 3])},
        order=("x", "", "", "sizes"),
        coordinate_transformation_mode="sideways",
    )
    with pytest.raises(ModelError, match="'sideways'"):
        import_onnx(proto)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad(mode: str) -> None:
    inputs = {"x": random((1, 2, 4, 5))}
    _agrees(
        _one("Pad", inputs, {"pads": np.array([0, 0, 2, 1, 0, 0, 1, 3])}, opset=19, mode=mode),
        inputs,
    )


def test_pads_below_zero_crop() -> None:
    inputs = {"x": random((4, 5))}
    _agrees(_one("Pad", inputs, {"pads": np.array([-1, 2, 1, -2])}), inputs)


@pytest.mark.parametrize(
    ("start", "end", "step"),
    [(0, 3, 1), (-2, 2**62, 1), (1, 5, 2), (-1, -(2**62), -1), (4, 0, -2), (3, 3, 1)],
)
def test_slice(start: int, end: int, step: int) -> None:
    data = random((2, 6))
    bounds = {"start": start, "end": end, "axis": 1, "step": step}
    constants = {name: np.array([number]) for name, number in bounds.items()}
    imported = import_onnx(_one("Slice", {"x": data}, constants))
    expected = data[:, slice(start, None if end < -6 else end, step)]
    assert imported.output_shapes == (expected.shape,)
    if expected.size:
        np.testing.assert_array_equal(run(imported, data)[0], expected)


def test_gather_counts_negative_indices_from_the_end() -> None:
    inputs = {"x": random((4, 3)), "i": np.array([[0, -1], [-4, 2]])}
    _agrees(_one("Gather", inputs), inputs)


def test_gather_stays_inside_the_tensor() -> None:
    data = random((4, 3))
    proto = _one("Gather", {"x": data, "i": np.zeros(2, np.int64)})
    result = run(import_onnx(proto), data, np.array([2**40, -(2**40)]))[0]
    np.testing.assert_array_equal(result, data[[3, 0]])


def test_constant_indices_out_of_bounds_are_refused() -> None:
    with pytest.raises(ModelError, match="out of bounds"):
        import_onnx(_one("Gather", {"x": random((4, 3))}, {"i": np.array([4])}))


@pytest.mark.parametrize("operator", ["Max", "Min", "Sum", "Mean"])
def test_variadic_operators_broadcast(operator: str) -> None:
    inputs = {"a": random((2, 1, 3), 1), "b": random((4, 1), 2), "c": random((), 3)}
    _agrees(_one(operator, inputs), inputs)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("outputs", [1, 3])
def test_layer_normalization(axis: int, outputs: int) -> None:
    shape = (2, 3, 4)
    scale = random(shape[axis:], 1)
    inputs = {"x": random(shape)}
    proto = _one("LayerNormalization", inputs, {"scale": scale}, outputs, axis=axis)
    _agrees(proto, inputs)


@pytest.mark.parametrize("power", [1, 2])
def test_lp_normalization_of_zeros_is_zero(power: int) -> None:
    data = np.array([[3.0, -4.0], [0.0, 0.0]], np.float32)
    result = run(import_onnx(_one("LpNormalization", {"x": data}, axis=1, p=power)), data)[0]
    norm = 7.0 if power == 1 else 5.0
    np.testing.assert_allclose(result, [[3 / norm, -4 / norm], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("power", [np.array([2], np.int64), np.array([0.5], np.float32)])
def test_power_of_another_dtype(power: np.ndarray) -> None:
    inputs = {"x": np.abs(random((3, 2)))}
    _agrees(_one("Pow", inputs, {"p": power}), inputs)


def test_mish_and_softplus_do_not_overflow() -> None:
    data = np.array([-200.0, -1.0, 0.0, 1.0, 200.0], np.float32)
    softplus = run(import_onnx(_one("Softplus", {"x": data})), data)[0]
    np.testing.assert_allclose(softplus, np.logaddexp(0, data), rtol=1e-5, atol=1e-7)
    mish = run(import_onnx(_one("Mish", {"x": data})), data)[0]
    np.testing.assert_allclose(mish, data * np.tanh(np.logaddexp(0, data)), rtol=1e-5, atol=1e-6)


def test_is_inf_minds_the_sign() -> None:
    data = np.array([np.inf, -np.inf, 1.0, np.nan], np.float32)
    result = run(import_onnx(_one("IsInf", {"x": data}, detect_positive=0)), data)[0]
    np.testing.assert_array_equal(result, [False, True, False, False])


def test_one_hot_with_values_given_at_run_time() -> None:
    inputs = {"i": np.array([0, 2, -1]), "v": np.array([5.0, 7.0], np.float32)}
    proto = _one("OneHot", inputs, {"d": np.array([4])}, order=("i", "d", "v"))
    _agrees(proto, inputs)


def test_reverse_sequence() -> None:
    inputs = {"x": random((4, 3)), "n": np.array([4, 2, 1])}
    _agrees(_one("ReverseSequence", inputs, time_axis=0, batch_axis=1), inputs)


def test_transposed_convolution_to_a_given_shape() -> None:
    inputs = {"x": random((1, 1, 3, 3))}
    weights = {"w": random((1, 2, 3, 3), 1)}
    proto = _one("ConvTranspose", inputs, weights, strides=[3, 2], output_shape=[10, 8])
    _agrees(proto, inputs)


@pytest.mark.parametrize("samples", [7, 8])
def test_transform_matrix(samples: int) -> None:
    signal = random((samples,)).astype(np.float64)
    matrix = transform_matrix(samples, samples, 1, inverse=False, onesided=True)
    spectrum = (signal @ matrix).reshape(-1, 2)
    expected = np.fft.rfft(signal)
    np.testing.assert_allclose(spectrum[:, 0] + 1j * spectrum[:, 1], expected, atol=1e-12)
    back = transform_matrix(len(spectrum), samples, 2, inverse=True, onesided=True)
    np.testing.assert_allclose(spectrum.reshape(-1) @ back, signal, atol=1e-12)


@pytest.mark.parametrize("onesided", [0, 1])
def test_short_time_fourier_transform(onesided: int) -> None:
    inputs = {"x": random((2, 64, 1))}
    constants = {
        "step": np.array(8),
        "window": np.hanning(16).astype(np.float32),
        "length": np.array(16),
    }
    _agrees(_one("STFT", inputs, constants, onesided=onesided), inputs)


def test_training_dropout_is_refused() -> None:
    constants = {"ratio": np.array(0.5, np.float32), "training": np.array(True)}
    with pytest.raises(ModelError, match="export for inference"):
        import_onnx(_one("Dropout", {"x": random((3,))}, constants))


def test_dtypes_that_cannot_be_computed_with_are_named() -> None:
    with pytest.raises(ModelError, match="int4"):
        import_onnx(_one("Cast", {"x": random((3,))}, opset=21, to=TensorProto.INT4))
