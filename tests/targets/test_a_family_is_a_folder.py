"""A family of machines takes one folder (here, two modules) and one line of the registry."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from tvm.script import ir as I  # noqa: N812
from tvm.script import relax as R  # noqa: N812

from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.pipeline import configured
from tinsmith.targets import registry
from tinsmith.targets.cpu.backend import CpuBackend
from tinsmith.targets.family import Family
from tinsmith.targets.number_formats import byte_formats
from tinsmith.targets.registry import backend_of, family_of, get_target, target_names
from tinsmith.targets.x86.specs import X86_64_V3

DUMMY_1 = replace(X86_64_V3, name="dummy-1", architecture="dummy")


class DummyBackend(CpuBackend):
    """A CPU without an instruction of its own."""

    formats = byte_formats("dummy", "uint8")


@pytest.fixture
def dummy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder, and the line."""
    folder = ModuleType("dummy_backend")
    folder.BACKEND = DummyBackend()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dummy_backend", folder)
    line = Family(
        "dummy", frozenset({"dummy"}), (DUMMY_1,), lambda: None, "dummy_backend",
        aliases={"fakeboard": "dummy-1"},
    )  # fmt: skip
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES, line))


@pytest.mark.usefixtures("dummy")
def test_it_is_found_by_name() -> None:
    assert "dummy-1" in target_names()
    assert get_target("Fake Board") is DUMMY_1
    assert family_of(DUMMY_1).kind == "dummy"
    assert isinstance(backend_of(DUMMY_1), DummyBackend)
    assert backend_of(DUMMY_1).machine_check(DUMMY_1) == ""


@pytest.mark.usefixtures("dummy")
def test_the_pipeline_schedules_its_kernels() -> None:
    @I.ir_module
    class Product:
        @R.function
        def main(x: R.Tensor((4, 16), "float32")) -> R.Tensor((4, 32), "float32"):
            with R.dataflow():
                y = R.matmul(x, R.const(np.ones((16, 32), np.float32)))
                R.output(y)
            return y

    report = configured(CompileConfig(target="dummy-1"), DUMMY_1).run(Product)
    assert [kernel.template for kernel in report.kernels] == ["matmul"]


def test_without_the_line_nothing_knows_it() -> None:
    assert "dummy-1" not in target_names()
    with pytest.raises(ValueError, match="no family has the architecture 'dummy'"):
        family_of(DUMMY_1)
