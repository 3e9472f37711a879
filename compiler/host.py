"""The machine at hand: found once, where the API is entered, and passed down."""

from __future__ import annotations

from dataclasses import dataclass

from tinsmith.compiler.errors import TargetError
from tinsmith.targets.registry import get_target, portable_target
from tinsmith.targets.spec import TargetSpec, UnknownTargetError


@dataclass(frozen=True)
class Host:
    """The machine on which graphs are run while a model is compiled, whatever it is compiled for.

    `spec` is "native" where that can be described. Elsewhere it is what every machine of this
    process's architecture runs, and nothing can be compiled for the machine itself.
    """

    spec: TargetSpec

    @classmethod
    def at_hand(cls) -> Host:
        """Raises TargetError for an architecture that no kernels can be made for."""
        try:
            return cls(get_target("native"))
        except UnknownTargetError as unknown:
            try:
                return cls(portable_target())
            except UnknownTargetError:
                raise TargetError(str(unknown)) from unknown

    def makes(self, spec: TargetSpec) -> bool:
        """Whether kernels for `spec` are those for this machine, whatever its name."""
        return _instructions(spec) == _instructions(self.spec)


def _instructions(spec: TargetSpec) -> tuple[object, ...]:
    return spec.llvm_triple, spec.llvm_cpu, spec.llvm_attributes, spec.vector_bits
