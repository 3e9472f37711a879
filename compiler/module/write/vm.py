"""The VM form: a Relax virtual machine executable, for models without a static plan.

Dynamic shapes, control flow and kernels that call TVM's runtime end up here.
The result needs TVM's runtime on the machine that loads it.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, te, tirx
from tvm.ir import IRModule

from tinsmith.compiler.errors import BuildError
from tinsmith.compiler.frontends.imported import result_types
from tinsmith.compiler.module.manifest import TensorEntry
from tinsmith.compiler.module.vm_loader import LIBRARY_NAME
from tinsmith.compiler.module.write.build import tvm_target
from tinsmith.compiler.module.write.linker import link_objects
from tinsmith.compiler.module.write.lowered import LoweredModel
from tinsmith.compiler.module.write.stages import STACK_BYTES, buffer_bytes
from tinsmith.targets.spec import TargetSpec

# From kernels to the instructions of TVM's virtual machine, without its search for reshapes among
# the kernels, which cannot look into scheduled ones, and without optimisation.
TO_INSTRUCTIONS = tvm.ir.transform.Sequential(
    [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
)

# The name of TVM's own lowering of kernels with `small_buffers_on_stack` before its end.
_LOWERING = "tinsmith"

# The object files of an executable: its kernels, and its bytecode with the constants.
_OBJECTS = ("lib0.o", "devc.o")


def write_vm_module(folder: Path, lowered: LoweredModel, reason: str) -> dict[str, Any]:
    """Write `model_vm.so` into `folder`; returns the manifest's fields for this form.

    Raises `BuildError` when TVM cannot compile the model either, OSError where the disk is full.
    """
    executable = _compile(_with_a_kernel(lowered.module), lowered.spec, lowered.source_name)
    _export(executable, folder, lowered.spec)
    main = lowered.module["main"]
    return {
        "form": "vm",
        "vm_reason": reason,
        "entry": "main",
        "inputs": tuple(
            _entry(name, parameter.ty)
            for name, parameter in zip(lowered.input_names, main.params, strict=True)
        ),
        "outputs": tuple(
            _entry(name, kind)
            for name, kind in zip(lowered.output_names, result_types(main), strict=True)
        ),
        "notes": (*lowered.notes, f"written in the VM form: {reason}"),
    }


def _export(executable: tvm.runtime.Executable, folder: Path, spec: TargetSpec) -> None:
    """Link the executable into a library in `folder`.

    LLVM ends the whole process where a disk is full, and TVM has it write files of these names:
    here they lead into memory, and what is written from there raises OSError.
    """
    with tempfile.TemporaryDirectory(dir=folder) as build, ExitStack() as streams:
        held = Path(build) / "held"
        held.mkdir()
        for name in _OBJECTS:
            stream = streams.enter_context(open(os.memfd_create(name), "rb"))
            (held / name).symlink_to(f"/proc/self/fd/{stream.fileno()}")

        def link(output: str, objects: list[str], **_options: Any) -> None:
            written = [Path(build) / Path(name).name for name in objects]
            for path, name in zip(written, objects, strict=True):
                path.write_bytes(Path(name).read_bytes())
            link_objects(written, Path(output), spec)

        executable.export_library(
            str(folder / LIBRARY_NAME), fcompile=link, workspace_dir=str(held)
        )


def kernel_calls(module: IRModule) -> list[str]:
    """The kernels that the functions of a lowered module call, once for each call."""
    names: list[str] = []

    def note(node: Any) -> None:
        if isinstance(node, relax.Call) and getattr(node.op, "name", "") == "relax.call_tir":
            names.append(str(node.args[0].name_hint))

    for function in module.functions.values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, note)
    return names


def _compile(module: IRModule, spec: TargetSpec, name: str) -> tvm.runtime.Executable:
    try:
        return tvm.compile(
            module,
            target=tvm_target(spec),
            relax_pipeline=TO_INSTRUCTIONS,
            tir_pipeline=_LOWERING,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        detail = str(error).strip().splitlines()[-1]
        raise BuildError(f"{name}: TVM could not compile the model's VM form: {detail}") from error


@tirx.transform.prim_func_pass(opt_level=0, name="SmallBuffersOnStack")
def small_buffers_on_stack(
    function: tirx.PrimFunc, _module: IRModule, _context: tvm.transform.PassContext
) -> tirx.PrimFunc:
    """A kernel whose small buffers are no calls for memory of TVM's runtime.

    The accumulators of a register tile would be one such call for each tile, and stay in memory.
    """
    on_stack = {"disable_lower_builtin": tirx.IntImm("bool", 1)}

    def place(allocation: tirx.AllocBuffer) -> tirx.AllocBuffer:
        size = buffer_bytes(allocation.buffer)
        if size is None or size > STACK_BYTES:
            return allocation
        return tirx.AllocBuffer(allocation.buffer, on_stack)

    body = tvm_ffi.structural_map(function.body, (tirx.AllocBuffer, place))
    return function.with_body(body)


def _lowering() -> tuple[Any, Any, Any]:
    """TVM's passes over kernels: all together, then for the host, and for devices."""
    together, for_host, for_devices = tirx.get_tir_pipeline("s_tir")

    def for_host_on_stack() -> tvm.transform.Pass:
        return tvm.transform.Sequential([small_buffers_on_stack, for_host()])

    return together, for_host_on_stack, for_devices


tirx.register_tir_pipeline(_LOWERING, _lowering)


def _with_a_kernel(module: IRModule) -> IRModule:
    """The module with at least one kernel: TVM cannot load a library of bytecode alone."""
    if any(isinstance(function, tirx.PrimFunc) for function in module.functions.values()):
        return module
    x = te.placeholder((1,), name="x")
    function = te.create_prim_func([x, te.compute((1,), lambda i: x[i], name="copy")])
    result = module.clone()
    result["nothing_to_compute"] = function.with_attr("global_symbol", "nothing_to_compute")
    return result


def _entry(name: str, kind: Any) -> TensorEntry:
    if not isinstance(kind, relax.TensorType):
        raise BuildError(f"input or output {name!r} is not a tensor; the VM form needs tensors")
    if isinstance(kind.shape, relax.ShapeExpr):
        shape = tuple(
            int(e.value) if isinstance(e, tvm.tirx.IntImm) else str(e) for e in kind.shape.values
        )
    else:
        shape = tuple(f"{name}_{i}" for i in range(max(kind.ndim, 0)))
    return TensorEntry(name, str(kind.dtype), shape)
