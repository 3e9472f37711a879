"""`tinsmith targets`: what can be compiled for."""

from __future__ import annotations

from tinsmith.compiler.cli import output
from tinsmith.compiler.cli.options import AsJson


@output.reported
def list_targets(as_json: AsJson = False) -> None:
    """List the targets, and what `native` is on this machine.

    **Example:** `tinsmith targets`
    """
    from tinsmith.targets.registry import get_target, target_names

    specs = [get_target(name) for name in target_names()]
    if as_json:
        output.print_json(
            [
                {
                    "name": spec.name,
                    "architecture": spec.architecture,
                    "triple": spec.llvm_triple,
                    "cpu": spec.llvm_cpu,
                    "vector_bits": spec.vector_bits,
                    "cores": spec.cores,
                    "cpu_features": sorted(spec.cpu_features),
                    "description": spec.description,
                }
                for spec in specs
            ]
        )
        return
    output.print_table(
        "",
        ("target", "architecture", "CPU", "description", "vector bits", "cores"),
        [
            (
                spec.name,
                spec.architecture,
                spec.llvm_cpu,
                spec.description,
                spec.vector_bits,
                spec.cores,
            )
            for spec in specs
        ],
        left=4,
    )
