"""Runs kernels for other machines: one program of all of them, under an emulator."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tvm import tirx

from tinsmith.compiler.module.write.build import build_kernels
from tinsmith.compiler.module.write.linker import link_executable
from tinsmith.compiler.module.write.stages import KernelCode
from tinsmith.targets.spec import TargetSpec

_PROLOGUE = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *room(size_t bytes) {
  void *memory = aligned_alloc(64, (bytes + 127) / 64 * 64);
  memset(memory, 99, bytes + 64);
  return memory;
}

static void *from(const char *path, size_t bytes) {
  void *memory = room(bytes);
  FILE *file = fopen(path, "rb");
  if (!file || fread(memory, 1, bytes, file) != bytes) exit(1);
  fclose(file);
  return memory;
}

static void to(const char *path, const void *memory, size_t bytes) {
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(memory, 1, bytes, file) != bytes || fclose(file)) exit(1);
}
"""

Case = tuple[tirx.PrimFunc, Sequence[npt.NDArray[np.generic]]]


def run_foreign(
    cases: Mapping[str, Case], spec: TargetSpec, emulator: Sequence[str], folder: Path
) -> dict[str, npt.NDArray[np.generic]]:
    """The output of each scheduled function (its last parameter) for its arguments."""
    built = build_kernels({name: function for name, (function, _) in cases.items()}, spec)
    outputs = {}
    bodies = []
    for name, (function, arguments) in cases.items():
        last = function.params[-1].ty
        outputs[name] = np.empty([int(e) for e in last.shape], str(last.dtype))
        for i, argument in enumerate(arguments):
            (folder / f"{name}.{i}").write_bytes(np.ascontiguousarray(argument).tobytes())
        sizes = [argument.nbytes for argument in arguments]
        bodies.append(_calls(name, sizes, outputs[name].nbytes, built.kernels[name]))
    source = folder / "main.c"
    source.write_text(_PROLOGUE + "int main(void) {\n" + "\n".join(bodies) + "\n}\n")
    objects = []
    for i, content in enumerate(built.objects):
        objects.append(folder / f"kernels_{i}.o")
        objects[-1].write_bytes(content)
    link_executable([source, *objects], folder / "kernels", spec, [], [])
    subprocess.run([*emulator, folder / "kernels"], cwd=folder, check=True)
    for name, output in outputs.items():
        content = np.fromfile(folder / f"{name}.out", output.dtype)
        outputs[name] = content.reshape(output.shape)
    return outputs


def _calls(name: str, sizes: Sequence[int], output: int, code: KernelCode) -> str:
    pointers = [f'from("{name}.{i}", {size})' for i, size in enumerate(sizes)]
    pointers += [f"room({size})" for size in (output, *code.scratch)]
    lines = [
        f"void *p[] = {{{', '.join(pointers)}}};",
        f"char *task = room({code.task_scratch_bytes});",
    ]
    assert all(stage.rounds == 1 for stage in code.stages)
    for stage in code.stages:
        places = [f"p[{i}]" for i in stage.pointers] + [f"task + {o}" for o in stage.task_scratch]
        types = ", ".join(["int32_t", "int32_t", *["void *"] * len(places)])
        lines.append(f"extern int32_t {stage.symbol}({types});")
        lines.append(
            f"if ({stage.symbol}({', '.join(['0', str(stage.extent), *places])})) exit(1);"
        )
    lines.append(f'(void)task; to("{name}.out", p[{len(sizes)}], {output});')
    return "{\n" + "\n".join(lines) + "\n}"
