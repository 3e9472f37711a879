"""Models without a static plan take the VM form, and say why."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
import tvm_ffi
from small_networks import SPEC, fused
from tvm import s_tir, tirx
from tvm.script import ir as I  # noqa: N812
from tvm.script import relax as R  # noqa: N812
from tvm.script import tirx as T  # noqa: N812

from tinsmith.compiler.errors import ArtifactError, BuildError, InputError
from tinsmith.compiler.module.loader import load
from tinsmith.compiler.module.manifest import read_manifest
from tinsmith.compiler.module.write.lowered import LoweredModel
from tinsmith.compiler.module.write.stages import STACK_BYTES
from tinsmith.compiler.module.write.vm import small_buffers_on_stack
from tinsmith.compiler.module.write.writer import write_module


@I.ir_module
class Dynamic:
    @R.function
    def main(x: R.Tensor(("n", 4), "float32"), y: R.Tensor(("n", 4), "float32")):
        with R.dataflow():
            z = R.add(R.nn.relu(x), y)
            R.output(z)
        return z


@I.ir_module
class Branch:
    @R.function
    def main(c: R.Tensor((), "bool"), x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
        if c:  # noqa: SIM108
            y = R.add(x, x)
        else:
            y = R.multiply(x, x)
        return y


@pytest.fixture(scope="module")
def dynamic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = LoweredModel(fused(Dynamic), SPEC, ("x", "y"), ("z",), source_name="dynamic")
    return write_module(model, tmp_path_factory.mktemp("vm") / "m").path


def test_the_caller_is_not_bound_to_a_processor(dynamic_folder: Path) -> None:
    usable = os.sched_getaffinity(0)
    with load(dynamic_folder) as module:
        module.run(list(np.ones((2, 4096, 4), "float32")))
    assert os.sched_getaffinity(0) == usable


def test_all_processors_share_a_loop(dynamic_folder: Path) -> None:
    """TVM itself takes half of those of an x86, as if the rest were hyper-threads."""
    code = (
        "import sys, tinsmith\n"
        "module = tinsmith.load(sys.argv[1])\n"
        "import tvm; print(tvm.get_global_func('runtime.NumThreads')())\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TVM_NUM_THREADS"}
    told = subprocess.run(
        [sys.executable, "-c", code, str(dynamic_folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert int(told) == len(os.sched_getaffinity(0))


def test_small_buffers_are_no_calls_for_memory() -> None:
    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((64,), "float32")):
        small = T.alloc_buffer((STACK_BYTES // 4,), "float32")
        large = T.alloc_buffer((STACK_BYTES // 4 + 1,), "float32")
        small[0] = x[0]
        large[0] = small[0]
        x[1] = large[0]

    def annotated(function: tirx.PrimFunc) -> list[bool]:
        found: list[bool] = []
        note = lambda allocation: found.append(bool(allocation.annotations))  # noqa: E731
        tvm_ffi.structural_walk(function.body, (tirx.AllocBuffer, note))
        return found

    module = tvm.transform.Sequential([s_tir.transform.LowerOpaqueBlock(), small_buffers_on_stack])(
        tvm.IRModule({"kernel": kernel})
    )
    assert annotated(module["kernel"]) == [True, False]


def test_dynamic_shapes(dynamic_folder: Path) -> None:
    manifest = read_manifest(dynamic_folder)
    assert manifest.form == "vm"
    assert manifest.vm_reason == "the dynamic dimension n"
    assert any("VM form" in note for note in manifest.notes)
    assert manifest.inputs[0].shape == ("n", 4)
    with load(dynamic_folder) as module:
        for n in (1, 7):
            x, y = np.random.default_rng(n).standard_normal((2, n, 4)).astype("float32")
            np.testing.assert_array_equal(module(x, y)["z"], np.maximum(x, 0) + y)
            out = np.empty((n, 4), "float32")
            assert module.run([x, y], [out])[0] is out
            np.testing.assert_array_equal(module.context()(x=x, y=y)["z"], out)
        timed = {step.kernel: step.seconds for step in module.profile([x, y], 2)}
        assert all(timed[entry.name] > 0 for entry in manifest.kernels)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TVM's own files stay in memory: LLVM would end the process."""
    write, on_disk = Path.write_bytes, []

    def full(path: Path, content: bytes) -> int:
        if path.suffix == ".o":
            on_disk.extend(p for p in tmp_path.rglob("*.o") if not p.is_symlink())
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    model = LoweredModel(fused(Dynamic), SPEC, ("x", "y"), ("z",), source_name="dynamic")
    with pytest.raises(BuildError, match="the disk is full"):
        write_module(model, tmp_path / "m")
    assert (on_disk, list(tmp_path.iterdir())) == ([], [])


def test_symbolic_dimensions_must_agree(dynamic_folder: Path) -> None:
    with load(dynamic_folder) as module:
        with pytest.raises(InputError, match=r"input 'y': expected shape \(n, 4\), got \(3, 4\)"):
            module(np.zeros((5, 4), "float32"), np.zeros((3, 4), "float32"))
        with pytest.raises(InputError, match="expected dtype"):
            module(np.zeros((5, 4)), np.zeros((5, 4)), strict=True)


def test_dynamic_outputs_are_filled(dynamic_folder: Path) -> None:
    with load(dynamic_folder) as module:
        x, y = np.ones((5, 4)), np.arange(20).reshape(5, 4).tolist()
        expected = module(x, y)["z"]
        memory = np.zeros((*expected.shape[:-1], expected.shape[-1] * 2), "float32")
        filled = module(x, y, out=memory[..., ::2])
        np.testing.assert_array_equal(filled["z"], expected)
        np.testing.assert_array_equal(memory[..., ::2], expected)
        with pytest.raises(InputError, match=r"output 'z': expected shape \(5, "):
            module(x, y, out=np.zeros((1, *expected.shape[1:]), "float32"))


def test_control_flow(tmp_path: Path) -> None:
    model = LoweredModel(fused(Branch), SPEC, ("c", "x"), ("y",), source_name="branch")
    written = write_module(model, tmp_path / "m")
    assert written.manifest.form == "vm"
    x = np.arange(4, dtype="float32")
    with load(written.path) as module:
        np.testing.assert_array_equal(module(np.array(True), x)["y"], x + x)
        np.testing.assert_array_equal(module(np.array(False), x)["y"], x * x)


def test_a_damaged_library_is_refused(dynamic_folder: Path, tmp_path: Path) -> None:
    for path in dynamic_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with open(tmp_path / "model_vm.so", "ab") as file:
        file.write(b"more")
    with pytest.raises(ArtifactError, match="does not match its digest"):
        load(tmp_path)


def test_packed_functions_that_only_tvm_has(tmp_path: Path) -> None:
    @I.ir_module
    class Foreign:
        @T.prim_func(private=True, s_tir=True)
        def kernel(A: T.Buffer((4,), "float32"), C: T.Buffer((4,), "float32")):
            T.call_packed("my.own.function", A.data, C.data)

        @R.function
        def main(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
            return R.call_tir(Foreign.kernel, (x,), out_ty=R.Tensor((4,), "float32"))

    model = LoweredModel(Foreign, SPEC, ("x",), ("y",))
    manifest = write_module(model, tmp_path / "m").manifest
    assert manifest.form == "vm"
    assert manifest.vm_reason == "kernel kernel calls my.own.function"
