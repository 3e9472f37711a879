"""Object code for several targets."""

from __future__ import annotations

import struct

import pytest
from tvm.script import tirx as T  # noqa: N812

from tinsmith.compiler.errors import BuildError
from tinsmith.compiler.module.write.build import Builds, build_kernels
from tinsmith.compiler.module.write.stages import UnsupportedKernelError
from tinsmith.targets.registry import get_target

# ELF machine numbers and the ARM flag for the hard-float calling convention.
_X86_64, _AARCH64, _ARM = 62, 183, 40


@T.prim_func(private=True, s_tir=True)
def double(A: T.Buffer((8, 16), "float32"), C: T.Buffer((8, 16), "float32")):
    for i in T.parallel(8):
        for j in T.vectorized(16):
            C[i, j] = A[i, j] * T.float32(2)


@T.prim_func(private=True, s_tir=True)
def foreign(A: T.Buffer((8,), "float32"), C: T.Buffer((8,), "float32")):
    T.call_packed("my.own.function", A.data, C.data)


@T.prim_func(private=True, s_tir=True)
def scalar(n: T.int32, C: T.Buffer((8,), "float32")):
    for i in range(8):
        C[i] = T.float32(n)


@pytest.mark.parametrize(
    ("target", "machine", "bits"),
    [("x86-64-v3", _X86_64, 2), ("cortex-a72", _AARCH64, 2), ("cortex-a7", _ARM, 1)],
)
def test_objects_are_for_the_target(target: str, machine: int, bits: int) -> None:
    built = build_kernels({"double": double}, get_target(target), prefix="net")
    (data,) = built.objects
    assert data[:4] == b"\x7fELF"
    assert data[4] == bits
    kind, number = struct.unpack_from("<HH", data, 16)
    assert (kind, number) == (1, machine)  # relocatable
    assert b"net_k_double_0\0" in data
    assert built.kernels["double"].stages[0].symbol == "net_k_double_0"


def test_work_is_spread_over_object_files() -> None:
    functions = {f"double{i}": double for i in range(4)}
    built = build_kernels(functions, get_target("x86-64-v3"), jobs=2)
    assert len(built.objects) == 2
    assert set(built.kernels) == set(functions)


def test_packed_calls_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedKernelError, match=r"foreign calls my\.own\.function"):
        build_kernels({"foreign": foreign}, get_target("x86-64-v3"))


def test_scalar_parameters_are_refused() -> None:
    with pytest.raises(UnsupportedKernelError, match="takes the scalar n"):
        build_kernels({"scalar": scalar}, get_target("x86-64-v3"))


def test_an_unknown_cpu_feature_is_a_build_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("first line\nLLVM ERROR: cannot select")

    monkeypatch.setattr(
        "tinsmith.compiler.module.write.build.tvm.get_global_func", lambda _: broken
    )
    with pytest.raises(BuildError, match="x86-64-v3: LLVM ERROR: cannot select"):
        build_kernels({"double": double}, get_target("x86-64-v3"))


def test_equal_kernels_are_compiled_once() -> None:
    spec = get_target("x86-64-v3")
    functions, builds = {"double": double}, Builds()
    built = build_kernels(functions, spec, prefix="once", builds=builds)
    assert build_kernels(functions, spec, prefix="once", builds=builds) is built
    for other in (
        build_kernels(functions, get_target("x86-64-v4"), prefix="once", builds=builds),
        build_kernels(functions, spec, {"double": [True, True]}, prefix="once", builds=builds),
        build_kernels(functions, spec, prefix="twice", builds=builds),
        build_kernels(functions, spec, prefix="once"),
    ):
        assert other is not built
