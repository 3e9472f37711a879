"""Arrays that a user gives a module on the command line."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from tinsmith.compiler.errors import InputError
from tinsmith.compiler.module.array_files import read_arrays

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("stored", [ARRAY, np.asfortranarray(ARRAY), ARRAY.astype(">f4")])
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_arrays_come_as_modules_take_them(stored: np.ndarray, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith("z"):
        np.savez(path, x=stored)
    else:
        np.save(path, stored)
    read = read_arrays([str(path)], ["x"])["x"]
    assert read.flags.c_contiguous and read.dtype == np.float32 and read.dtype.isnative
    np.testing.assert_array_equal(read, ARRAY)


def test_an_input_is_given_once(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, ARRAY)
    np.savez(tmp_path / "x.npz", x=ARRAY)
    for second in (f"x={path}", str(tmp_path / "x.npz")):
        with pytest.raises(InputError, match=r"--input x=\.\.\.: given twice"):
            read_arrays([f"x={path}", second], ["x"])


def test_what_is_no_array(tmp_path: Path) -> None:
    objects, packed = tmp_path / "o.npy", tmp_path / "raw.npz"
    np.save(objects, np.array([{}]), allow_pickle=True)
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("x", b"no array")
    for path in (objects, packed, tmp_path):
        with pytest.raises(InputError, match=r"not a \.npy or \.npz file"):
            read_arrays([str(path)], ["x"])
