"""Which machine records are for: a folder's name, and how near two machines are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tinsmith.targets.spec import TargetSpec

# What generated code depends on; machines that agree in these are near.
_INSTRUCTIONS = ("triple", "cpu", "attributes", "vector_bits", "vector_registers")


def describe(spec: TargetSpec) -> dict[str, Any]:
    """All of a machine that the best decisions depend on, as plain data for JSON.

    Imports TVM, whose version is among them.
    """
    import tvm

    return {
        "triple": spec.llvm_triple,
        "cpu": spec.llvm_cpu,
        "attributes": sorted(spec.llvm_attributes),
        "vector_bits": spec.vector_bits,
        "vector_registers": spec.vector_registers,
        "cores": spec.cores,
        "l1_bytes": spec.l1_bytes,
        "l2_bytes": spec.l2_bytes,
        "l3_bytes": spec.l3_bytes,
        "tvm": tvm.__version__,
    }


def target_key(spec: TargetSpec) -> str:
    """The name of the machine's folder, such as `x86-64-v4-2-cores-1f0a92b3c4`."""
    content = json.dumps(describe(spec), sort_keys=True).encode()
    cores = f"{spec.cores}-core{'s' if spec.cores != 1 else ''}"
    return f"{spec.llvm_cpu}-{cores}-{hashlib.sha256(content).hexdigest()[:10]}"


def is_near(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two described machines run the same code, with the same version of TVM.

    What is best on one is then a good place to begin on the other. The version decides
    whether equal workloads have equal keys.
    """
    fields = (*_INSTRUCTIONS, "tvm")
    return all(
        first.get(name) is not None and first.get(name) == second.get(name) for name in fields
    )
