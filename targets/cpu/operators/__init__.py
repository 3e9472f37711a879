"""Operator definitions: exact TensorIR that carries its workload to a template."""

from tinsmith.targets.cpu.operators.legalize import legalize_map

__all__ = ["legalize_map"]
