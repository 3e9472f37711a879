"""Which floats kernels multiply in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tinsmith.targets.arm.specs import SPECS as ARM_SPECS
from tinsmith.targets.number_formats import float_precisions
from tinsmith.targets.x86.specs import X86_64_V3, X86_64_V4


@pytest.mark.parametrize("spec", [X86_64_V3, X86_64_V4, *ARM_SPECS], ids=lambda spec: spec.name)
def test_named_targets_multiply_in_float32(spec):
    assert float_precisions(spec) == ("float32",)


def test_bfloat16_needs_its_instructions_and_wide_registers():
    features = X86_64_V4.cpu_features | {"avx512_bf16"}
    assert float_precisions(replace(X86_64_V4, cpu_features=features)) == ("float32", "bfloat16")
    assert float_precisions(replace(X86_64_V3, cpu_features=features)) == ("float32",)
