"""Two models in one C program, by their static libraries and headers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from small_networks import lowered
from tvm.relax import op

from tinsmith.compiler.module.write.writer import write_module

PROGRAM = r"""
#include <stdio.h>
#include "one/model.h"
#include "two/model.h"

static float run(const tinsmith_module *m, float x) {
  float in[4] = {x, x, x, x}, out[4];
  const void *inputs[] = {in};
  void *outputs[] = {out};
  if (m->open(NULL)) return -1;
  m->set_threads(2);
  tinsmith_context *c = m->create();
  int status = m->run(c, NULL, inputs, outputs);
  m->destroy(c);
  m->close();
  return status ? -1 : out[3];
}

int main(void) {
  printf("%s %g %s %g\n", one_module()->name, run(one_module(), 3), two_module()->name,
         run(two_module(), 3));
  return 0;
}
"""


def test_two_models_in_one_program(tmp_path: Path) -> None:
    shape = (((4,), "float32"),)
    write_module(lowered(lambda x: op.add(x, x), shape, name="One"), tmp_path / "one")
    write_module(lowered(lambda x: op.multiply(x, x), shape, name="two"), tmp_path / "two")
    (tmp_path / "main.c").write_text(PROGRAM)
    command = [
        sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu", "-Wall", "-Werror",
        "main.c", "one/model.a", "two/model.a", "-lm", "-lpthread", "-o", "program",
    ]  # fmt: skip
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True)
    assert done.stdout == "One 6 two 9\n"
