"""What records are kept by: a folder for each machine, and which machines are near."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tvm

from tinsmith.targets.key import describe, is_near, target_key
from tinsmith.targets.registry import get_target

SPEC = get_target("x86-64-v4")


def test_the_key_is_of_all_that_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = [
        replace(SPEC, l1_bytes=SPEC.l1_bytes * 2),
        replace(SPEC, l2_bytes=SPEC.l2_bytes * 2),
        replace(SPEC, cores=SPEC.cores + 1),
        get_target("x86-64-v3"),
    ]
    keys = {target_key(spec) for spec in (SPEC, *changed)}
    assert len(keys) == len(changed) + 1
    monkeypatch.setattr(tvm, "__version__", "0.99.0")
    assert target_key(SPEC) not in keys


def test_caches_and_cores_may_differ_between_near_machines() -> None:
    other = replace(SPEC, cores=SPEC.cores + 1, l1_bytes=1, l2_bytes=2, l3_bytes=3)
    assert is_near(describe(other), describe(SPEC))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("triple", "aarch64-linux-gnu"),
        ("cpu", "x86-64-v3"),
        ("attributes", ["+avx512vnni"]),
        ("vector_bits", 256),
        ("vector_registers", 16),
        # Another version may describe the same workload in other words, under another key.
        ("tvm", "0.99.0"),
    ],
)
def test_machines_with_other_code_are_not_near(field: str, value: object) -> None:
    own = describe(SPEC)
    assert own[field] != value
    assert not is_near({**own, field: value}, own)
    assert not is_near({name: own[name] for name in own if name != field}, own)


def test_what_neither_of_two_machines_tells_is_not_the_same() -> None:
    assert not is_near({}, {})
