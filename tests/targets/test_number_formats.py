"""Which floats kernels multiply in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tinsmith.targets.arm.specs import SPECS as ARM_SPECS
from tinsmith.targets.number_formats import float_precisions
from tinsmith.targets.x86.specs import SAPPHIRE_RAPIDS, X86_64_V3, X86_64_V4


@pytest.mark.parametrize("spec", [X86_64_V3, X86_64_V4, *ARM_SPECS], ids=lambda spec: spec.name)
def test_named_targets_multiply_in_float32(spec):
    assert float_precisions(spec) == ("float32",)


def test_bfloat16_needs_its_instructions():
    assert float_precisions(replace(X86_64_V4, bfloat16=True)) == ("float32", "bfloat16")
    assert float_precisions(SAPPHIRE_RAPIDS) == ("float32", "bfloat16")
