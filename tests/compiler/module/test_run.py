"""Running a loaded module from Python."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from small_networks import NETWORK_INPUT, random_inputs

from tinsmith.compiler.errors import ArtifactError, InputError
from tinsmith.compiler.module.archive import pack
from tinsmith.compiler.module.base import Module
from tinsmith.compiler.module.golden import largest_deviation
from tinsmith.compiler.module.loader import load
from tinsmith.compiler.module.manifest import TensorEntry
from tinsmith.compiler.module.selfcontained import SelfContainedModule
from tinsmith.compiler.module.signature import Inputs, Signature


@pytest.fixture
def module(network_folder: Path):
    with load(network_folder, threads=2) as loaded:
        yield loaded


def _image(seed: int = 0) -> np.ndarray:
    return random_inputs(NETWORK_INPUT, seed)[0]


def test_ways_to_call(module: Module) -> None:
    x = _image()
    by_order = module(x)
    assert list(by_order) == ["y0", "y1"]
    for other in (module(x0=x), module({"x0": x}), module.context()(x)):
        np.testing.assert_array_equal(other["y0"], by_order["y0"])
    for other in (module.run([x]), module.run({"x0": x}), module.context().run((x,))):
        np.testing.assert_array_equal(other[0], by_order["y0"])


def test_golden_vectors(module: Module) -> None:
    golden = module.golden()
    assert golden is not None
    for result, expected in zip(module.run(golden.inputs), golden.outputs, strict=True):
        assert largest_deviation(result, expected) <= golden.tolerance


def test_given_outputs_are_filled(module: Module) -> None:
    outputs = [np.empty((8, 10), "float32"), np.empty((8, 256), "float32")]
    results = module.run([_image()], outputs)
    assert results[0] is outputs[0]
    np.testing.assert_array_equal(outputs[0], module.run([_image()])[0])


def test_calls_fill_what_they_are_given(module: Module) -> None:
    expected = module(_image())
    out = {"y1": np.empty((256, 8), "float32").T, "y0": np.empty((8, 10), "float32")}
    for call in (module, module.context()):
        filled = call(_image().tolist(), out=out)
        assert list(filled) == ["y0", "y1"] and filled["y1"] is out["y1"]
        for name, array in filled.items():
            np.testing.assert_array_equal(array, expected[name])
            array[:] = 0
    for runs in (module, module.context()):
        with pytest.raises(InputError, match="not contiguous"):
            runs(_image().transpose(0, 1, 3, 2), strict=True)
        with pytest.raises(InputError, match="got float64"):
            runs.run([_image().astype("float64")], strict=True)


def test_an_input_takes_the_keyword_of_its_name() -> None:
    class Adder(SelfContainedModule):
        """Sums its inputs in Python."""

        def __init__(self) -> None:
            entries = [TensorEntry(name, "float32", (2,)) for name in ("out", "strict", "self")]
            self._signature = Signature("adder", entries, [TensorEntry("y", "float32", (2,))])

        def __del__(self) -> None:
            pass

        def run(self, inputs: Inputs, outputs: object = None, *, strict: bool = False) -> list:
            assert outputs is None and strict is False
            return [sum(self._signature.checked(inputs))]

    called = Adder()(out=[1, 2], strict=np.array([3, 4]), self=[5, 6])
    assert called["y"].tolist() == [9, 12]


def test_a_module_says_what_it_is(module: Module) -> None:
    assert [(t.name, t.dtype, t.shape) for t in module.inputs] == [
        ("x0", "float32", (1, 3, 16, 16))
    ]
    assert [t.name for t in module.outputs] == ["y0", "y1"]
    told = repr(module)
    for part in ("x0 float32[1, 3, 16, 16] ->", "y0 float32[8, 10]", "2 threads", "small"):
        assert part in told


def test_modules_are_pickled_by_path(module: Module, tmp_path: Path) -> None:
    expected = module(_image())["y0"]
    with pickle.loads(pickle.dumps(module)) as again:
        assert again is not module and again.threads == 2
        np.testing.assert_array_equal(again(_image())["y0"], expected)
    # That of an archive is the archive, not the folder where it lies unpacked meanwhile.
    archive = tmp_path / "m.tar.zst"
    pack(module.path, archive)
    with load(archive, threads=1) as packed:
        content = pickle.dumps(packed)
        assert str(archive) in repr(packed)
    with pickle.loads(content) as again:
        np.testing.assert_array_equal(again(_image())["y0"], expected)
    archive.unlink()
    with pytest.raises(ArtifactError, match=r"m\.tar\.zst"):
        pickle.loads(content)


def test_contexts_end_with_their_block(module: Module) -> None:
    with module.context() as context:
        context(_image())
    with pytest.raises(InputError, match="closed"):
        context(_image())


def test_runs_are_awaited_side_by_side(module: Module) -> None:
    async def all_of_them() -> list[dict[str, np.ndarray]]:
        return await asyncio.gather(*(module.arun(x0=_image(seed)) for seed in range(4)))

    for seed, found in enumerate(asyncio.run(all_of_them())):
        np.testing.assert_array_equal(found["y0"], module(_image(seed))["y0"])


def test_unaligned_arrays(module: Module) -> None:
    x = _image()
    raw = np.zeros(x.nbytes + 8, "uint8")
    shifted = raw[4 : 4 + x.nbytes].view("float32").reshape(x.shape)
    shifted[:] = x
    assert shifted.ctypes.data % 16 != 0 or raw.ctypes.data % 16 != 0
    np.testing.assert_array_equal(module.run([shifted])[0], module.run([x])[0])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 3, 16, 16), "complex64"), "expected dtype float32, got complex64"),
        (np.zeros((3, 16, 16), "float32"), r"expected shape \(1, 3, 16, 16\)"),
        (np.zeros((1, 3, 16, 17), "float32"), "expected shape"),
        (np.full((1, 3, 16, 16), 1e300), "numbers that do not fit into float32"),
        ([[1.0]], "expected shape"),
        ([[1.0], [1.0, 2.0]], "list cannot be read as an array"),
        (["a"], "expected a numpy array of numbers, got list"),
        (None, "expected a numpy array"),
    ],
)
def test_inputs_are_checked(module: Module, array: object, message: str) -> None:
    with pytest.raises(InputError, match=f"input 'x0': .*{message}"):
        module(array)


def test_wrong_names_and_numbers(module: Module) -> None:
    x = _image()
    with pytest.raises(InputError, match="unknown input 'image'; the inputs are: x0"):
        module(image=x)
    with pytest.raises(InputError, match="no input 'x0'"):
        module({})
    with pytest.raises(InputError, match="takes 1 inputs, 2 were given"):
        module(x, x)
    with pytest.raises(InputError, match="either in order or by name"):
        module(x, x0=x)
    with pytest.raises(InputError, match="expected a list or a dict"):
        module.run(x)  # type: ignore[arg-type]


def test_outputs_are_checked(module: Module) -> None:
    good = [np.empty((8, 10), "float32"), np.empty((8, 256), "float32")]
    with pytest.raises(InputError, match="has 2 outputs, 1 arrays"):
        module.run([_image()], good[:1])
    with pytest.raises(InputError, match="output 'y1': expected shape"):
        module.run([_image()], [good[0], good[0]])
    with pytest.raises(InputError, match="output 'y0': expected dtype float32, got float64"):
        module.run([_image()], [np.empty((8, 10)), good[1]])
    with pytest.raises(InputError, match=r"output 'y0': expected a numpy array .* got list"):
        module.run([_image()], [[1.0], good[1]])
    with pytest.raises(InputError, match="unknown output 'z' to fill; the outputs are: y0, y1"):
        module(_image(), out={"z": good[0]})
    memory = np.zeros((8, 256), "float32")
    with pytest.raises(InputError, match="memory of an input"):
        module.run([memory.reshape(-1)[:768].reshape(1, 3, 16, 16)], [good[0], memory])
    good[0].flags.writeable = False
    with pytest.raises(InputError, match="read-only"):
        module.run([_image()], good)


def test_threads_do_not_change_results(network_folder: Path) -> None:
    x = _image()
    with load(network_folder, threads=1) as module:
        expected = module.run([x])
        for threads in (2, 3, 8, 1, 4):
            module.threads = threads
            assert module.threads == threads
            for result, reference in zip(module.run([x]), expected, strict=True):
                np.testing.assert_array_equal(result, reference)
        with pytest.raises(InputError, match="threads=-1"):
            module.threads = -1
        module.threads = 0
        assert module.threads == len(os.sched_getaffinity(0))


def test_eight_callers_agree_with_serial_runs(module: Module) -> None:
    images = [_image(seed) for seed in range(8)]
    expected = [module.run([x])[0] for x in images]

    def check(caller: int) -> bool:
        context = module.context() if caller % 2 else module
        return all(
            np.array_equal(context.run([images[i]])[0], expected[i])
            for i in np.random.default_rng(caller).integers(0, 8, 200)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(8)))


def test_one_context_shared_by_threads_is_serialised(module: Module) -> None:
    context = module.context()
    expected = module.run([_image()])[0]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: context.run([_image()])[0], range(100)))
    assert all(np.array_equal(result, expected) for result in results)


def test_the_interpreter_is_released(module: Module) -> None:
    """A second thread makes progress while kernels run."""
    counted = 0
    stop = threading.Event()

    def count() -> None:
        nonlocal counted
        while not stop.is_set():
            counted += 1

    thread = threading.Thread(target=count)
    thread.start()
    for _ in range(200):
        module.run([_image()])
    stop.set()
    thread.join()
    assert counted > 1000


def test_ten_thousand_runs_leave_memory_flat(network_folder: Path) -> None:
    """In a process of its own; pages of files do not count, the kernel maps them as it likes."""
    code = f"""
import numpy, tinsmith
def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon:"))
module = tinsmith.load({str(network_folder)!r}, threads=2)
x = numpy.zeros((1, 3, 16, 16), "float32")
outputs = module.run([x])
for _ in range(1000):
    module.run([x], outputs)
before = resident()
for _ in range(10_000):
    module.run([x], outputs)
print(resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 128  # KiB


def test_loading_and_closing_leaves_nothing(network_folder: Path) -> None:
    def cycle() -> None:
        with load(network_folder, threads=3) as module:
            module.run([_image()])

    for _ in range(5):
        cycle()
    before = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    for _ in range(20):
        cycle()
    assert (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))) == before


def test_a_closed_module_refuses(network_folder: Path) -> None:
    module = load(network_folder)
    context = module.context()
    module.close()
    module.close()
    with pytest.raises(InputError, match="has been closed"):
        module.run([_image()])
    with pytest.raises(InputError, match="has been closed"):
        context.run([_image()])


def test_two_modules_of_one_folder_are_independent(network_folder: Path) -> None:
    first, second = load(network_folder), load(network_folder)
    expected = second.run([_image()])
    first.close()
    for actual, wanted in zip(second.run([_image()]), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)
    second.close()


def test_modules_of_one_folder_have_threads_of_their_own(network_folder: Path) -> None:
    with load(network_folder, threads=3) as first, load(network_folder, threads=1) as second:
        assert (first.threads, second.threads) == (3, 1)
        context = first.context()
        expected = first.run([_image()])
        for module in (second, context, first):
            assert all(map(np.array_equal, module.run([_image()]), expected))
        first.threads = 2
        assert (first.threads, second.threads) == (2, 1)
        assert all(map(np.array_equal, context.run([_image()]), expected))


def test_one_thread_starts_no_others(network_folder: Path) -> None:
    code = f"""
import numpy, os, tinsmith
before = len(os.listdir("/proc/self/task"))
module = tinsmith.load({str(network_folder)!r}, threads=1)
x = numpy.zeros((1, 3, 16, 16), "float32")
module.run([x]), module.context().run([x])
print(len(os.listdir("/proc/self/task")) - before)
other = tinsmith.load({str(network_folder)!r}, threads=3)
other.run([x]), module.run([x])
print(len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "2"]


def test_a_forgotten_module_is_unloaded(network_folder: Path) -> None:
    def mapped() -> bool:
        return "model.so" in Path("/proc/self/maps").read_text()

    gc.collect()
    before = mapped()
    module = load(network_folder)
    module.run([_image()])
    assert mapped()
    del module
    gc.collect()
    assert mapped() == before


def test_a_forked_child_can_run(module: Module) -> None:
    expected = module.run([_image()])[0]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # must not return into pytest
        try:
            same = np.array_equal(module.run([_image()])[0], expected)
            module.close()
            os.write(write, b"1" if same else b"0")
        finally:
            os._exit(0)
    os.close(write)
    answer = os.read(read, 1)
    os.close(read)
    os.waitpid(child, 0)
    assert answer == b"1"


def test_profile_names_every_step(module: Module) -> None:
    times = module.profile([_image()], repeats=5)
    assert [step.kernel for step in times] == list(module.manifest.steps)
    assert [step.index for step in times] == list(range(len(times)))
    assert all(step.seconds > 0 for step in times)
