"""Which template each kernel of ten networks gets, and with which decisions, is written down.

A change of a template, a pass or a cost model that is meant to leave other models alone shows
here if it does not. Where a change is meant: `make golden` writes `frozen/*.txt` anew, and what
differs belongs to the commit (docs/adr/0113). Nothing of it depends on the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from network_models import LARGE_NETWORKS, NETWORKS

from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pipeline import lowering
from tinsmith.targets.registry import get_target
from tinsmith.targets.template import KernelReport

FROZEN = Path(__file__).with_name("frozen")
TARGETS = ("x86-64-v3", "sapphirerapids")
MODELS = NETWORKS | LARGE_NETWORKS


def described(kernels: Sequence[KernelReport]) -> str:
    """A line for each kernel: its name, template, arithmetic and decisions."""
    return "".join(
        " ".join(
            [
                f"{kernel.name}: {kernel.template or 'no template'} {kernel.template_version}",
                f"[{kernel.arithmetic}]",
                *(f"{name}={value}" for name, value in sorted(kernel.decisions.items())),
            ]
        )
        + "\n"
        for kernel in kernels
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", MODELS)
def test_kernels_templates_and_decisions(
    model: str, target: str, request: pytest.FixtureRequest
) -> None:
    imported = import_onnx(MODELS[model]())
    told = described(lowering(get_target(target)).run(imported.module).kernels)
    path = FROZEN / f"{model}-{target}.txt"
    if request.config.getoption("update_golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(told, encoding="utf-8")
    assert told.splitlines() == path.read_text(encoding="utf-8").splitlines(), (
        f"other kernels than {path.name} has; if they are meant to be: make golden"
    )


def test_no_file_is_left_over() -> None:
    expected = {f"{model}-{target}.txt" for model in MODELS for target in TARGETS}
    assert {path.name for path in FROZEN.iterdir()} == expected
