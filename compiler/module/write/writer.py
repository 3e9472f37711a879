"""Writes a compiled module: a folder with libraries, header, weights, vectors and manifest.

| file | what |
|---|---|
| `model.so` | shared library: kernels, plan, runtime; weights when they are small |
| `model.a` | the same for static linking, every global symbol prefixed with the model's name |
| `tinsmith-run` | static executable: info, run, bench, verify |
| `model.h`, `tinsmith.h` | C interface |
| `example.c`, `tinsmith-config.cmake`, `tinsmith-<model>.pc` | for programs in C |
| `weights.bin` | weights, mapped read-only, when they are not embedded |
| `golden.bin` | golden vectors |
| `manifest.json` | what the module is, needs and consists of, with the digests of all files |

The folder is made beside its destination and put there by one rename.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import tvm

from tinsmith.compiler.dimensions.open_batch import OpenBatch
from tinsmith.compiler.errors import BuildError, ConfigError, ModelError
from tinsmith.compiler.module.golden import FILE_NAME as GOLDEN_NAME
from tinsmith.compiler.module.golden import GoldenVectors, encode_sets
from tinsmith.compiler.module.manifest import (
    FILE_NAME as MANIFEST_NAME,
)
from tinsmith.compiler.module.manifest import (
    MAP_FROM_BYTES,
    DimensionEntry,
    KernelEntry,
    MachineEntry,
    Manifest,
    PassEntry,
    TensorEntry,
    digest_file,
    read_manifest,
    write_atomically,
)
from tinsmith.compiler.module.version import tinsmith_version
from tinsmith.compiler.module.write.build import Builds, BuiltKernels, build_kernels
from tinsmith.compiler.module.write.c_project import write_project
from tinsmith.compiler.module.write.driver import (
    RUNTIME_FOLDER,
    generate_driver,
    generate_header,
    symbol_prefix,
    symbolic,
)
from tinsmith.compiler.module.write.folder import replace_folder, scratch_folder
from tinsmith.compiler.module.write.linker import (
    compile_c,
    link_executable,
    link_shared,
    make_archive,
)
from tinsmith.compiler.module.write.lowered import LoweredModel
from tinsmith.compiler.module.write.plan import (
    Graph,
    NeedsVirtualMachineError,
    Plan,
    TensorSpec,
    aligned_arguments,
    keep_whole_batches,
    lower_calls,
    place_tensors,
    read_graph,
)
from tinsmith.compiler.module.write.stages import UnsupportedKernelError

FORMS = ("shared", "static", "runner")
# Below this, weights are part of every library; above it they are stored once, in a file.
EMBED_BELOW_BYTES = 32 * 1024 * 1024
_T = TypeVar("_T")


@dataclass(frozen=True)
class WrittenModule:
    """Where a module was written, its manifest, and the seconds that each phase took."""

    path: Path
    manifest: Manifest
    seconds: dict[str, float] = field(default_factory=dict)


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def measure(self, phase: str, action: Callable[[], _T]) -> _T:
        begin = time.perf_counter()
        try:
            return action()
        finally:
            self.seconds[phase] = time.perf_counter() - begin


def write_module(
    lowered: LoweredModel,
    out_dir: str | Path,
    *,
    golden: GoldenVectors | Sequence[GoldenVectors] | None = None,
    forms: Sequence[str] = FORMS,
    embed_weights: bool | None = None,
    jobs: int = 2,
    builds: Builds | None = None,
) -> WrittenModule:
    """Generate code for `lowered` and write the module to the folder `out_dir`.

    `golden` are sets of golden vectors: one, or one for each of several sizes of an open batch.
    `forms` chooses among "shared" (always written), "static" and "runner".
    `embed_weights` puts the weights into the libraries (True), into a file
    (False), or decides by size (None). `jobs` is the number of compiler threads;
    kernels that are among `builds` are not compiled again.
    An existing module at `out_dir` is replaced; any other non-empty folder is
    refused. Models that have no self-contained form (dynamic shapes, control
    flow, kernels that need TVM's runtime) are written in the VM form, with the
    reason in the manifest.

    Raises `BuildError` when code generation, linking or writing fails; then
    `out_dir` is as it was.
    """
    with new_module(
        lowered,
        out_dir,
        golden=golden,
        forms=forms,
        embed_weights=embed_weights,
        jobs=jobs,
        builds=builds,
    ) as written:
        pass
    return replace(written, path=Path(out_dir))


@contextmanager
def new_module(
    lowered: LoweredModel,
    out_dir: str | Path,
    *,
    golden: GoldenVectors | Sequence[GoldenVectors] | None = None,
    forms: Sequence[str] = FORMS,
    embed_weights: bool | None = None,
    jobs: int = 2,
    builds: Builds | None = None,
) -> Iterator[WrittenModule]:
    """As `write_module`, but the module takes the place of `out_dir` at the end of the block.

    Within, it is in a folder beside that, to be loaded and tried. After an exception `out_dir`
    is as it was.
    """
    unknown = sorted(set(forms) - set(FORMS))
    if unknown:
        raise ConfigError(f"unknown module form {unknown[0]!r}; choose from {', '.join(FORMS)}")
    destination = Path(out_dir)
    sets = (golden,) if isinstance(golden, GoldenVectors) else tuple(golden or ())
    watch = _Stopwatch()
    with scratch_folder(destination) as folder:
        try:
            manifest = _write_into(folder, lowered, sets, forms, embed_weights, jobs, builds, watch)
            yield WrittenModule(folder, manifest, watch.seconds)
            watch.measure("rename", lambda: replace_folder(folder, destination))
        except OSError as error:
            reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
            raise BuildError(f"{destination}: the module could not be written: {reason}") from error


def replace_golden(folder: Path, golden: Sequence[GoldenVectors]) -> Manifest:
    """Give the module in `folder` other golden vectors; its manifest, with their digest."""
    path = folder / GOLDEN_NAME
    manifest = read_manifest(folder)
    write_atomically(path, encode_sets(golden) if manifest.dims else golden[0].encode())
    files = {**manifest.files, GOLDEN_NAME: digest_file(path)}
    updated = msgspec.structs.replace(manifest, files=files, tolerance=golden[0].tolerance)
    write_atomically(folder / MANIFEST_NAME, updated.to_json().encode())
    return updated


def _write_into(
    folder: Path,
    lowered: LoweredModel,
    golden: Sequence[GoldenVectors],
    forms: Sequence[str],
    embed_weights: bool | None,
    jobs: int,
    builds: Builds | None,
    watch: _Stopwatch,
) -> Manifest:
    try:
        graph, plan, built = watch.measure("code generation", lambda: _plan(lowered, jobs, builds))
    except (NeedsVirtualMachineError, UnsupportedKernelError) as error:
        reason = str(error)
        if lowered.batch is not None:
            raise ModelError(
                f"{lowered.source_name}: {reason}, and a module whose batch is a range has to be "
                "self-contained; give the batch one size"
            ) from error
        graph = None
    if graph is None:
        from tinsmith.compiler.module.write.vm import kernel_calls, write_vm_module

        fields = watch.measure("virtual machine", lambda: write_vm_module(folder, lowered, reason))
        calls = kernel_calls(lowered.module)
        fields["kernels"] = _kernel_entries(lowered, calls)
    else:
        fields = _self_contained(folder, lowered, graph, plan, built, forms, embed_weights, watch)
    if golden:
        # Only the C runtime reads files without shapes, and it has fixed ones, or is told sizes.
        encoded = golden[0].encode(with_shapes=graph is None)
        if lowered.batch is not None:
            encoded = encode_sets(golden)
        (folder / GOLDEN_NAME).write_bytes(encoded)
        fields["tolerance"] = golden[0].tolerance
    spec = lowered.spec
    manifest = Manifest(
        name=lowered.source_name,
        tinsmith=tinsmith_version(),
        tvm=tvm.__version__,
        target=MachineEntry(
            name=spec.name,
            architecture=spec.architecture,
            triple=spec.llvm_triple,
            cpu=spec.llvm_cpu,
            cpu_features=tuple(sorted(spec.cpu_features)),
        ),
        files={path.name: digest_file(path) for path in sorted(folder.iterdir())},
        passes=tuple(PassEntry(name, seconds) for name, seconds in lowered.passes),
        config=dict(lowered.config),
        **fields,
    )
    write_atomically(folder / MANIFEST_NAME, manifest.to_json().encode())
    return manifest


def _plan(
    lowered: LoweredModel, jobs: int, builds: Builds | None
) -> tuple[Graph, Plan, BuiltKernels]:
    module = lower_calls(lowered.module)
    graph = read_graph(module, lowered.input_names, lowered.output_names)
    if lowered.batch is not None:
        keep_whole_batches(graph, lowered.batch)
    used = {call.kernel for call in graph.calls}
    functions = {v.name_hint: f for v, f in module.functions.items() if v.name_hint in used}
    prefix = symbol_prefix(lowered.source_name)
    built = build_kernels(functions, lowered.spec, aligned_arguments(graph), prefix, jobs, builds)
    return graph, place_tensors(graph, built.kernels), built


def _self_contained(
    folder: Path,
    lowered: LoweredModel,
    graph: Graph,
    plan: Plan,
    built: BuiltKernels,
    forms: Sequence[str],
    embed_weights: bool | None,
    watch: _Stopwatch,
) -> dict[str, Any]:
    prefix = symbol_prefix(lowered.source_name)
    if embed_weights is None:
        embed_weights = plan.weights_bytes < EMBED_BELOW_BYTES
    embed_weights = embed_weights or plan.weights_bytes == 0
    build = folder / "build"
    build.mkdir()
    weights_file = (build if embed_weights else folder) / "weights.bin"
    watch.measure("weights", lambda: _write_weights(weights_file, graph, plan))
    for path in RUNTIME_FOLDER.iterdir():
        shutil.copyfile(path, build / path.name)
    objects = []
    for i, data in enumerate(built.objects):
        objects.append(build / f"kernels_{i}.o")
        objects[-1].write_bytes(data)
    source = build / f"{prefix}_model.c"
    embedded = weights_file if embed_weights and plan.weights_bytes else None
    source.write_text(
        generate_driver(
            plan,
            built.kernels,
            built.sorts,
            name=lowered.source_name,
            prefix=prefix,
            target=lowered.spec,
            version=tinsmith_version(),
            embedded_weights=embedded,
            batch=lowered.batch,
        )
    )  # fmt: skip
    header = generate_header(prefix, lowered.source_name, plan, lowered.batch)
    (folder / "model.h").write_text(header)
    shutil.copyfile(RUNTIME_FOLDER / "tinsmith.h", folder / "tinsmith.h")
    write_project(folder, lowered.source_name, lowered.spec.name, tinsmith_version())

    entry = f"MODULE_ENTRY={prefix}_module"

    def libraries() -> None:
        driver = build / f"{prefix}_model.o"
        compile_c(source, driver, lowered.spec, [build])
        link_shared(
            [build / "entry.c", driver, *objects], folder / "model.so", lowered.spec,
            [build], [entry], [f"{prefix}_module", "tinsmith_get_module"],
        )  # fmt: skip
        if "static" in forms:
            make_archive([driver, *objects], folder / "model.a")

    def runner() -> None:
        link_executable(
            [build / "runner.c", source, *objects], folder / "tinsmith-run",
            lowered.spec, [build], [entry],
        )  # fmt: skip

    def link() -> None:
        with ThreadPoolExecutor(max_workers=2) as pool:
            jobs: list[Future[None]] = [pool.submit(libraries)]
            if "runner" in forms:
                jobs.append(pool.submit(runner))
        for job in jobs:
            job.result()

    watch.measure("link", link)
    shutil.rmtree(build)
    serialised = [f"kernel {k.name} runs an inner parallel loop serially"
                  for k in built.kernels.values() if k.serialised_loops]  # fmt: skip
    return {
        "form": "self-contained",
        "entry": f"{prefix}_module",
        "inputs": tuple(_entry(t, lowered.batch) for t in plan.inputs),
        "outputs": tuple(_entry(t, lowered.batch) for t in plan.outputs),
        "dims": () if lowered.batch is None else (_dimension(lowered.batch),),
        "weights_bytes": plan.weights_bytes,
        "weights_embedded": embed_weights,
        "arena_bytes": plan.arena_bytes,
        "kernels": _kernel_entries(lowered, [step.kernel for step in plan.steps]),
        "steps": tuple(step.kernel for step in plan.steps),
        "notes": (*lowered.notes, *serialised, *_mapped(plan, embed_weights)),
    }


def _entry(tensor: TensorSpec, batch: OpenBatch | None) -> TensorEntry:
    return TensorEntry(tensor.name, tensor.dtype, symbolic(tensor, batch))


def _dimension(batch: OpenBatch) -> DimensionEntry:
    return DimensionEntry(batch.name, batch.low, batch.high)


def _mapped(plan: Plan, embedded: bool) -> tuple[str, ...]:
    if embedded or plan.weights_bytes < MAP_FROM_BYTES:
        return ()
    size = plan.weights_bytes / 2**20
    return (
        f"weights.bin ({size:.0f} MiB) is mapped, not read: while a process uses the module, "
        "replace its files by renaming, never rewrite them",
    )


def _write_weights(path: Path, graph: Graph, plan: Plan) -> None:
    with open(path, "wb") as stream:
        for array, offset in zip(graph.weights, plan.weight_offsets, strict=True):
            stream.write(b"\0" * (offset - stream.tell()))
            stream.write(array.reshape(-1).view(np.uint8).data)
        stream.write(b"\0" * (plan.weights_bytes - stream.tell()))


def _kernel_entries(lowered: LoweredModel, called: Sequence[str]) -> tuple[KernelEntry, ...]:
    reports = {report.name: report for report in lowered.kernels}
    entries = []
    for name, calls in Counter(called).items():
        entry = KernelEntry(name, calls, nodes=tuple(lowered.nodes.get(name, ())))
        if name in reports:
            report = reports[name]
            entry = msgspec.structs.replace(
                entry,
                template=report.template,
                template_version=report.template_version,
                arithmetic=report.arithmetic,
                decisions=dict(report.decisions),
                source=report.source,
                flops=report.flops,
                bytes=report.bytes,
            )
        entries.append(entry)
    return tuple(entries)
