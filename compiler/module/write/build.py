"""Object code for any LLVM target from scheduled kernels.

The lowering is TVM's own for scheduled TIR up to the point where it would wrap
each kernel in a packed function; there `tinsmith.compiler.module.write.stages` takes over and
makes plain C functions of it.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from tinsmith.compiler.errors import BuildError
from tinsmith.compiler.module.write.sort_kernels import SortCall, match_sort
from tinsmith.compiler.module.write.stages import KernelCode, UnsupportedKernelError, split_kernel
from tinsmith.targets.registry import backend_of
from tinsmith.targets.spec import TargetSpec

# Builds that are kept; each is some hundred kilobytes.
_REMEMBERED = 4


@dataclass(frozen=True)
class BuiltKernels:
    """Relocatable object files (ELF) and how to call what is in them, by kernel name.

    `sorts` are the kernels that have no object code: the module's runtime does them.
    """

    objects: tuple[bytes, ...]
    kernels: Mapping[str, KernelCode]
    sorts: Mapping[str, SortCall]


class Builds:
    """What was compiled last, for who compiles the same kernels again.

    Quantising runs one graph for calibration, comparison and proof.
    """

    def __init__(self) -> None:
        self._recent: dict[Hashable, BuiltKernels] = {}

    def find(self, key: Hashable) -> BuiltKernels | None:
        """The build of that key, if it is one of the last."""
        return self._recent.get(key)

    def keep(self, key: Hashable, built: BuiltKernels) -> None:
        """Remember a build, and forget the oldest of too many."""
        while len(self._recent) >= _REMEMBERED:
            del self._recent[next(iter(self._recent))]
        self._recent[key] = built


def lower_kernels(functions: Mapping[str, tirx.PrimFunc], spec: TargetSpec) -> tvm.IRModule:
    """Scheduled PrimFuncs as loop nests over flat buffers, keyed by their names."""
    target = tvm_target(spec)
    module = tvm.IRModule(
        {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    )
    passes = [
        tirx.transform.BindTarget(target.with_host(target)),
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerCrossThreadReduction(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        _compact_blocks,
        s_tir.transform.LowerAutoCopy(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.AnnotateIrregularLoop(),
        s_tir.transform.InjectSoftwarePipeline(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.BF16ComputeLegalize(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(True),
        *backend_of(spec).lowering().vectorized,
        s_tir.transform.InjectVirtualThread(),
        s_tir.transform.InjectDoubleBuffer(),
        tirx.transform.StorageRewrite(),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
        tirx.transform.FP8ComputeLegalize(),
        tirx.transform.VerifyMemory(),
    ]
    with target:
        return tvm.transform.Sequential(passes)(module)


@tirx.transform.prim_func_pass(opt_level=0, name="CompactBlocks")
def _compact_blocks(
    function: tirx.PrimFunc, module: tvm.IRModule, _context: tvm.transform.PassContext
) -> tirx.PrimFunc:
    """CompactBufferAllocation where there are blocks: loops of templates have exact buffers.

    Those it would study for long (half of the time that lowering a Winograd kernel took), only
    to take the padding away that keeps scratch buffers apart.
    """
    blocks: list[s_tir.SBlock] = []
    tvm_ffi.structural_walk(function.body, (s_tir.SBlock, blocks.append))
    if not blocks:
        return function
    compacted = s_tir.transform.CompactBufferAllocation()(tvm.IRModule({"kernel": function}))
    return compacted["kernel"]


def build_kernels(
    functions: Mapping[str, tirx.PrimFunc],
    spec: TargetSpec,
    aligned: Mapping[str, Sequence[bool]] | None = None,
    prefix: str = "tinsmith",
    jobs: int = 2,
    builds: Builds | None = None,
) -> BuiltKernels:
    """Compile scheduled `functions` to position-independent object code for `spec`.

    `aligned` says, per kernel and parameter, whether the pointer is always a
    multiple of 64 (default: no). `prefix` starts every symbol's name. `jobs`
    object files are made in parallel. What is among `builds` is not compiled again,
    and what is compiled is added to them.
    Raises `UnsupportedKernelError` for a kernel that only the VM form can run,
    `BuildError` when LLVM rejects one.
    """
    aligned = aligned or {}
    builds = builds or Builds()
    key = _key(functions, spec, aligned, prefix, jobs)
    known = builds.find(key)
    if known is not None:
        return known
    kernels: dict[str, KernelCode] = {}
    sorts: dict[str, SortCall] = {}
    for name, function in functions.items():
        if matched := match_sort(name, function):
            kernels[name], sorts[name] = matched
    compiled = {name: f for name, f in functions.items() if name not in sorts}
    stages: dict[str, tirx.PrimFunc] = {}
    for name, function in _lower_in_parallel(compiled, spec, max(1, jobs)):
        called = packed_calls(function)
        if called:
            raise UnsupportedKernelError(f"kernel {name} calls {', '.join(sorted(called))}")
        flags = aligned.get(name) or [False] * len(function.params)
        code, parts = split_kernel(name, function, flags, prefix)
        kernels[name] = code
        stages.update(parts)
    groups = _balance(stages, max(1, jobs))
    with ThreadPoolExecutor(max_workers=len(groups) or 1) as pool:
        objects = list(pool.map(lambda group: _emit(group, spec), groups))
    built = BuiltKernels(tuple(objects), kernels, sorts)
    builds.keep(key, built)
    return built


def _lower_in_parallel(
    functions: Mapping[str, tirx.PrimFunc], spec: TargetSpec, jobs: int
) -> list[tuple[str, tirx.PrimFunc]]:
    """`lower_kernels` in threads, each with a part of the functions; the order is kept."""
    parts = [dict(list(functions.items())[i::jobs]) for i in range(jobs)]
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        lowered = list(pool.map(lambda part: lower_kernels(part, spec), filter(None, parts)))
    found = {v.name_hint: f for module in lowered for v, f in module.functions.items()}
    return [(name, found[name]) for name in functions]


def _key(
    functions: Mapping[str, tirx.PrimFunc],
    spec: TargetSpec,
    aligned: Mapping[str, Sequence[bool]],
    prefix: str,
    jobs: int,
) -> Hashable:
    """Equal for calls of `build_kernels` with equal results."""
    parts = [
        (name, tvm_ffi.StructuralKey(function), tuple(aligned.get(name) or ()))
        for name, function in functions.items()
    ]
    return tuple(parts), spec, prefix, jobs


def tvm_target(spec: TargetSpec) -> tvm.target.Target:
    """The TVM target of a machine."""
    return tvm.target.Target(spec.tvm_target_config())


def packed_calls(function: tirx.PrimFunc) -> set[str]:
    """Names of the packed functions (which only TVM's runtime has) that a kernel calls."""
    names: set[str] = set()

    def visit(call: tvm.ir.Call) -> None:
        operator = getattr(call.op, "name", "")
        if "call_packed" in operator or "call_cpacked" in operator:
            first = call.args[0]
            names.add(str(first.value) if isinstance(first, tvm.ir.StringImm) else str(first))

    tvm_ffi.structural_walk(function.body, (tvm.ir.Call, visit))
    return names


def _balance(stages: dict[str, tirx.PrimFunc], jobs: int) -> list[dict[str, tirx.PrimFunc]]:
    """Up to `jobs` groups of about equal code generation time, largest functions first."""
    size = {}
    for name, function in stages.items():
        statements: list[tirx.Stmt] = []
        tvm_ffi.structural_walk(function.body, (tirx.BufferStore, statements.append))
        size[name] = len(statements) + 5
    groups: list[dict[str, tirx.PrimFunc]] = [{} for _ in range(jobs)]
    load = [0] * jobs
    for name in sorted(stages, key=lambda n: (-size[n], n)):
        i = load.index(min(load))
        groups[i][name] = stages[name]
        load[i] += size[name]
    return [group for group in groups if group]


def _emit(stages: dict[str, tirx.PrimFunc], spec: TargetSpec) -> bytes:
    target = tvm_target(spec)
    finish = tvm.transform.Sequential(
        [
            tirx.transform.FP8StorageLegalize(),
            tirx.transform.BF16StorageLegalize(),
            tirx.transform.LowerTVMBuiltin(),
            tirx.transform.LowerIntrin(),
            *backend_of(spec).lowering().last,
        ]
    )
    try:
        with target:
            module = finish(tvm.IRModule(stages))
            library = tvm.get_global_func("target.build.llvm")(module, target)
        # Into memory: LLVM ends the whole process where a disk is full.
        with open(os.memfd_create("kernels.o"), "rb") as stream:
            library.write_to_file(f"/proc/self/fd/{stream.fileno()}", "o")
            return stream.read()
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise BuildError(
            f"LLVM could not compile the kernels for target {spec.name}: {reason}; "
            "please report this with the model"
        ) from error
