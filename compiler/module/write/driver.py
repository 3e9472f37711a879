"""Generates the C source that ties kernels, plan and runtime together.

One translation unit per model: tables of the plan, a small adapter per kernel
stage, and the runtime by inclusion, so that all but `<prefix>_module` is
private to the model and several models can live in one program.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tinsmith.compiler.dimensions.open_batch import OpenBatch
from tinsmith.compiler.module.manifest import MAP_FROM_BYTES, digest_file
from tinsmith.compiler.module.write.plan import Place, Plan, TensorSpec
from tinsmith.compiler.module.write.sort_kernels import SortCall
from tinsmith.compiler.module.write.stages import KernelCode
from tinsmith.compiler.plain_text import comment_text
from tinsmith.targets.registry import backend_of
from tinsmith.targets.spec import TargetSpec

RUNTIME_FOLDER = Path(__file__).parent / "runtime"


def symbol_prefix(name: str) -> str:
    """A C identifier made from a model's name."""
    cleaned = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
    return cleaned if cleaned and not cleaned[0].isdigit() else f"model_{cleaned}"


def c_string(text: str) -> str:
    """A C string literal; bytes outside printable ASCII are written in octal."""
    encoded = "".join(
        chr(b) if 32 <= b < 127 and b not in b'"\\?' else f"\\{b:03o}" for b in text.encode()
    )
    return f'"{encoded}"'


def _tensor_table(kind: str, tensors: Iterable[TensorSpec]) -> list[str]:
    lines = []
    rows = []
    for i, tensor in enumerate(tensors):
        extents = ", ".join(map(str, tensor.shape)) or "0"
        lines.append(f"static const int64_t {kind}_shape_{i}[] = {{{extents}}};")
        axes = "0"
        if tensor.open_axis is not None:
            axis, factor = tensor.open_axis
            axes = f"{kind}_axes_{i}"
            fixed = [f"{{-1, {extent}}}" for extent in tensor.shape]
            fixed[axis] = f"{{0, {factor}}}"
            lines.append(f"static const tinsmith_axis {axes}[] = {{{', '.join(fixed)}}};")
        rows.append(
            f"  {{{c_string(tensor.name)}, {c_string(tensor.dtype)}, {kind}_shape_{i}, "
            f"{len(tensor.shape)}, 0, {tensor.nbytes}u, {axes}}},"
        )
    return [*lines, f"static const tinsmith_tensor {kind}[] = {{", *(rows or ["  {0}"]), "};"]


def _stage_adapters(
    kernels: Mapping[str, KernelCode], sorts: Mapping[str, SortCall]
) -> tuple[list[str], dict[str, str]]:
    lines: list[str] = ["#include <string.h>", '#include "sort.c"'] if sorts else []
    tables: dict[str, str] = {}
    ends: dict[tuple[int, ...], str] = {}
    for number, (name, kernel) in enumerate(sorted(kernels.items())):
        rows = []
        if name in sorts:
            lines += [
                f"static int32_t run_{number}_0(int32_t begin, int32_t end, "
                "char *const *pointers, char *task_scratch) {",
                f"  static const sort_call call = {sorts[name].initializer()};",
                "  return sort_rows(&call, begin, end, pointers, task_scratch);",
                "}",
                f"static const stage stages_{number}[] = "
                f"{{{{run_{number}_0, {kernel.stages[0].extent}, 1, 1}}}};",
            ]
            tables[name] = f"stages_{number}"
            continue
        for i, stage in enumerate(kernel.stages):
            types = ["int32_t", "int32_t"]
            types += ["void *"] * (len(stage.pointers) + len(stage.task_scratch))
            arguments = ["begin", "end"]
            arguments += [f"pointers[{p}]" for p in stage.pointers]
            arguments += [f"task_scratch + {offset}" for offset in stage.task_scratch]
            lines += [
                f"extern int32_t {stage.symbol}({', '.join(types)});",
                f"static int32_t run_{number}_{i}(int32_t begin, int32_t end, "
                "char *const *pointers, char *task_scratch) {",
                "  (void)pointers; (void)task_scratch;",
                f"  return {stage.symbol}({', '.join(arguments)});",
                "}",
            ]
            row = f"run_{number}_{i}, {stage.extent}, {stage.rounds}, {stage.span}"
            if stage.ends:
                if stage.ends not in ends:
                    ends[stage.ends] = f"ends_{len(ends)}"
                    listed = ", ".join(map(str, stage.ends))
                    lines.append(f"static const int32_t {ends[stage.ends]}[] = {{{listed}}};")
                row += f", {ends[stage.ends]}, {int(stage.alone)}"
            rows.append(f"{{{row}}}")
        tables[name] = f"stages_{number}"
        lines.append(f"static const stage stages_{number}[] = {{{', '.join(rows) or '{0}'}}};")
    return lines, tables


def _step_tables(
    plan: Plan, kernels: Mapping[str, KernelCode], tables: dict[str, str]
) -> list[str]:
    def place(p: Place) -> str:
        first = {"weights": 0, "arena": 1, "input": 2, "output": 2 + len(plan.inputs)}
        return f"{{{first[p.base] + p.index}, {p.offset}u}}"

    lines = []
    rows = []
    for i, step in enumerate(plan.steps):
        places = ", ".join(map(place, step.places)) or "{0}"
        lines.append(f"static const place places_{i}[] = {{{places}}};")
        rows.append(
            f"  {{{tables[step.kernel]}, places_{i}, {len(kernels[step.kernel].stages)}, "
            f"{len(step.places)}}},"
        )
    copies = [
        f"  {{{i}, {place(source)}, {size}u{_blocks(plan.outputs[i])}}},"
        for i, source, size in plan.copies
    ]
    entries = [
        f"  {{{i}, {place(target)}, {size}u{_blocks(plan.inputs[i])}}},"
        for i, target, size in plan.entries
    ]
    names = [f"  {c_string(step.kernel)}," for step in plan.steps]
    return [
        *lines,
        "static const step steps[] = {", *(rows or ["  {0}"]), "};",
        "static const char *const step_names[] = {", *(names or ["  0"]), "};",
        "static const output_copy copies[] = {", *(copies or ["  {0}"]), "};",
        *(["static const output_copy entries[] = {", *entries, "};"] if entries else []),
    ]  # fmt: skip


def _blocks(tensor: TensorSpec) -> str:
    """Of an open batch: in how many blocks a tensor is copied, each with images in front."""
    return "" if tensor.images is None else f", {tensor.images.outer}"


def generate_driver(
    plan: Plan,
    kernels: Mapping[str, KernelCode],
    sorts: Mapping[str, SortCall],
    *,
    name: str,
    prefix: str,
    target: TargetSpec,
    version: str,
    embedded_weights: Path | None,
    batch: OpenBatch | None = None,
) -> str:
    """The model's C source. `embedded_weights` is a file to include with `.incbin`."""
    machine_check = backend_of(target).machine_check(target)
    adapters, tables = _stage_adapters(kernels, sorts)
    task_scratch = max((k.task_scratch_bytes for k in kernels.values()), default=0)
    constants = {
        "NAME": c_string(name),
        "TARGET": c_string(target.name),
        "VERSION": c_string(version),
        "INPUT_COUNT": len(plan.inputs),
        "OUTPUT_COUNT": len(plan.outputs),
        "STEP_COUNT": len(plan.steps),
        "COPY_COUNT": len(plan.copies),
        "MAX_PLACES": max((len(step.places) for step in plan.steps), default=1) or 1,
        "WEIGHTS_BYTES": f"{plan.weights_bytes}u",
        "ARENA_BYTES": f"{plan.arena_bytes}u",
        "TASK_SCRATCH_BYTES": f"{task_scratch}u",
        "MAP_WEIGHTS": int(plan.weights_bytes >= MAP_FROM_BYTES),
        "HAS_MACHINE_CHECK": int(bool(machine_check)),
        "EMBEDDED_WEIGHTS": "embedded_weights" if embedded_weights else "((const char *)0)",
    }
    if batch is not None:
        constants |= {
            "DIM_COUNT": 1,
            "ENTRY_COUNT": len(plan.entries),
            "DIM_NAME": c_string(batch.name),
            "DIM_LOW": batch.low,
            "DIM_HIGH": batch.high,
        }
    embedding = []
    if embedded_weights:
        # By its name alone: the folder, which is among those to include from, may have any.
        section = c_string(f'.incbin "{embedded_weights.name}"')
        embedding = [
            '__asm__(".section .rodata.weights,\\"a\\",%progbits\\n.balign 64\\n"',
            f'        ".local embedded_weights\\nembedded_weights:\\n" {section}',
            '        "\\n.previous\\n");',
            # The compiler's cache knows a source by its text.
            f"/* {digest_file(embedded_weights).blake3} */",
            'extern const char embedded_weights[] __attribute__((visibility("hidden")));',
        ]
    return "\n".join(
        [
            f"/* Generated by Tinsmith {version} from {comment_text(name)}. */",
            "#define _GNU_SOURCE",
            *(f"#define {key} {value}" for key, value in constants.items()),
            '#include "plan.h"',
            *embedding,
            *_tensor_table("inputs", plan.inputs),
            *_tensor_table("outputs", plan.outputs),
            *adapters,
            *_step_tables(plan, kernels, tables),
            '#include "pool.c"',
            *(["static int fail(const char *what, const char *detail);"] if machine_check else []),
            machine_check,
            '#include "module.c"',
            '__attribute__((visibility("default")))',
            f"const tinsmith_module *{prefix}_module(void) {{",
            "  return &description;",
            "}",
            "",
        ]
    )


def symbolic(tensor: TensorSpec, batch: OpenBatch | None) -> tuple[int | str, ...]:
    """The shape with the open extent by its name: ("batch", 3), ("4*batch", 10)."""
    extents: list[int | str] = list(tensor.shape)
    if batch is not None and tensor.open_axis is not None:
        axis, factor = tensor.open_axis
        extents[axis] = batch.name if factor == 1 else f"{factor}*{batch.name}"
    return tuple(extents)


def generate_header(prefix: str, name: str, plan: Plan, batch: OpenBatch | None = None) -> str:
    """The C header of one model: its entry point and its signature."""

    def describe(tensors: Iterable[TensorSpec]) -> list[str]:
        return [
            f" *   {i}: {comment_text(t.name)} {t.dtype}[{', '.join(map(str, symbolic(t, batch)))}]"
            for i, t in enumerate(tensors)
        ]

    bounds = []
    if batch is not None:
        dimension = comment_text(batch.name)
        bounds = [f" * Dimension 0, {dimension}: {batch.low} to {batch.high}."]
    guard = f"{prefix.upper()}_H"
    return "\n".join(
        [
            f"/* {comment_text(name)}, compiled by Tinsmith.",
            " * Inputs, in order:", *describe(plan.inputs),
            " * Outputs, in order:", *describe(plan.outputs),
            *bounds,
            " */",
            f"#ifndef {guard}", f"#define {guard}", '#include "tinsmith.h"',
            "#ifdef __cplusplus", 'extern "C" {', "#endif",
            f"const tinsmith_module *{prefix}_module(void);",
            "#ifdef __cplusplus", "}", "#endif", "#endif", "",
        ]
    )  # fmt: skip
