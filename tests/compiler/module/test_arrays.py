"""What becomes an input, and what can be filled: everything that holds numbers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tinsmith.compiler.errors import InputError
from tinsmith.compiler.module.arrays import as_input, as_output
from tinsmith.compiler.module.manifest import TensorEntry
from tinsmith.compiler.module.signature import Signature

F32, I64, U8, U16 = map(np.dtype, ("float32", "int64", "uint8", "uint16"))


class Tensor:
    """As other libraries exchange memory; on a device, and with a gradient, if it is told so."""

    def __init__(self, array: np.ndarray, device: int = 1, requires_grad: bool = False) -> None:
        self._array, self._device, self.requires_grad = array, device, requires_grad

    def __dlpack__(self, **options: Any) -> Any:
        if self.requires_grad:
            raise BufferError("use detach()")
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device, 0

    def detach(self) -> Tensor:
        return Tensor(self._array)


class MakesAnArray:
    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._array


VALUES = np.arange(6, dtype="float32").reshape(2, 3)


@pytest.mark.parametrize("value", [VALUES, Tensor(VALUES), Tensor(VALUES, requires_grad=True)])
def test_memory_of_others_is_read_in_place(value: Any) -> None:
    array = as_input("x", value, F32, "float32", strict=True)
    assert np.shares_memory(array, VALUES) and array.dtype == F32
    np.testing.assert_array_equal(array, VALUES)


@pytest.mark.parametrize(
    "value",
    [
        VALUES.tolist(),
        VALUES.astype(int).tolist(),
        MakesAnArray(VALUES),
        Tensor(np.asfortranarray(VALUES)),
        VALUES.T.copy().T,
        VALUES.astype(">f4"),
        VALUES.astype("float64"),
        VALUES.astype("float16"),
        VALUES.astype("int32"),
        VALUES.astype("uint8"),
        VALUES.astype(ml_dtypes.bfloat16),
    ],
)
def test_the_rest_is_copied_unless_that_is_refused(value: Any) -> None:
    array = as_input("x", value, F32, "float32", strict=False)
    assert array.dtype == F32 and array.flags.c_contiguous and array.dtype.isnative
    np.testing.assert_array_equal(array, VALUES)
    with pytest.raises(InputError, match=r"^x: "):
        as_input("x", value, F32, "float32", strict=True)


def test_integers_become_others_that_can_hold_them() -> None:
    for dtype in ("int32", "uint8", "bool", "uint64"):
        array = as_input("x", np.array([1, 0], dtype), I64, "int64", strict=False)
        assert array.dtype == I64 and array.tolist() == [1, 0]
    assert as_input("x", [255, 0], U8, "uint8", strict=False).tolist() == [255, 0]
    assert as_input("x", [], I64, "int64", strict=False).shape == (0,)
    for value in (256, -1):
        with pytest.raises(InputError, match=rf"x: {value} does not fit into uint8"):
            as_input("x", [0, value], U8, "uint8", strict=False)
    with pytest.raises(InputError, match="expected dtype int64, got float64"):
        as_input("x", [1.5], I64, "int64", strict=False)
    with pytest.raises(InputError, match="expected dtype bool, got int64"):
        as_input("x", [1], np.dtype(bool), "bool", strict=False)


def test_scalars_keep_their_shape() -> None:
    for value in (2, 2.0, np.float64(2), np.array(2, ">f4")):
        array = as_input("x", value, F32, "float32", strict=False)
        assert array.shape == () and array.dtype == F32 and float(array) == 2


def test_bfloat16_is_rounded_from_floats_and_taken_as_bits() -> None:
    floats = np.random.default_rng(0).normal(size=1000).astype("float32")
    floats[:4] = [1 + 2**-8, 1 + 3 * 2**-8, np.inf, -0.0]  # ties, what must stay as it is
    wanted = floats.astype(ml_dtypes.bfloat16)
    for value in (floats, floats.astype("float64"), wanted, wanted.view("uint16")):
        array = as_input("x", value, U16, "bfloat16", strict=False)
        np.testing.assert_array_equal(array, wanted.view("uint16"))
    nan = as_input("x", [float("nan"), 1.0], U16, "bfloat16", strict=False)
    assert np.isnan(nan.view(ml_dtypes.bfloat16)).tolist() == [True, False]
    with pytest.raises(InputError, match="bfloat16 as uint16 bits, or floats, got int64"):
        as_input("x", [1], U16, "bfloat16", strict=False)
    # Floats are bits of no other 16-bit type.
    with pytest.raises(InputError, match="expected dtype uint16, got float64"):
        as_input("x", [1.0], U16, "uint16", strict=False)


def test_tensors_of_other_devices_are_told_how_to_come_here() -> None:
    with pytest.raises(InputError, match=r"x: the tensor lies on another device; .*x\.cpu\(\)"):
        as_input("x", Tensor(VALUES, device=2), F32, "float32", strict=False)


def test_what_is_filled_shares_its_memory() -> None:
    memory = np.zeros((2, 3), "float32")
    for value in (memory, Tensor(memory)):
        as_output("y", value, F32)[:] += 1
    assert memory.min() == 2
    for value in (memory.tolist(), MakesAnArray(memory)):
        with pytest.raises(InputError, match="y: expected a numpy array or a tensor that shares"):
            as_output("y", value, F32)
    memory.flags.writeable = False
    with pytest.raises(InputError, match="y: the array is read-only"):
        as_output("y", memory, F32)


def test_what_is_filled_need_not_be_contiguous() -> None:
    signature = Signature("m", (), [TensorEntry("y", "float32", (2, 3))])
    wide = np.zeros((2, 6), "float32")
    given = {"y": wide[:, ::2]}
    (result,) = signature.results(given)
    result[:] = VALUES
    (returned,) = signature.delivered([result], given)
    assert returned is given["y"]
    np.testing.assert_array_equal(wide[:, ::2], VALUES)
    assert not wide[:, 1::2].any()
