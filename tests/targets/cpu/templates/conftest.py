"""Fixtures for testing a template over each instruction set that this machine has."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from template_checks import cpu_flags
from tvm import tirx

from tinsmith.targets.registry import backends
from tinsmith.targets.spec import TargetSpec
from tinsmith.targets.template import Template
from tinsmith.targets.x86.specs import X86_64_V3, X86_64_V4

# A family's arithmetics are known once its backend is loaded, whichever file of tests comes first.
backends()


@pytest.fixture(params=[X86_64_V3, X86_64_V4], ids=lambda spec: spec.name)
def spec(request: pytest.FixtureRequest) -> TargetSpec:
    """Each x86-64 level that this machine can run."""
    chosen: TargetSpec = request.param
    missing = chosen.cpu_features - cpu_flags()
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
    return chosen


@pytest.fixture
def schedule(spec: TargetSpec) -> Callable[..., tirx.PrimFunc]:
    """Matches and applies a template, with its default decisions unless some are given."""

    def apply(
        template: Template, function: tirx.PrimFunc, decisions: Mapping[str, int] | None = None
    ) -> tirx.PrimFunc:
        match = template.match(function, spec)
        assert match is not None
        chosen = {**template.default(match, spec), **(decisions or {})}
        return template.apply(function, match, chosen, spec)

    return apply
