"""What a machine is: frozen data that everything machine-dependent stands behind.

This file imports neither TVM nor anything above `targets`, so that a compiled
module can be loaded without them.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class CoreRates:
    """What a core does in a cycle, for estimates; by default an x86 since Haswell or Zen.

    `fmas`, `loads` and `operations` of whole registers begin in a cycle, of all of which the
    first are a part. `fma_latency` cycles pass before a sum can be added to again, of
    accumulation alone. An `in_order` core waits with everything behind a value that is not
    there. `memory_bytes` and `cache_bytes` of weights come in a cycle from memory and from
    the last cache.
    """

    fmas: float = 2.0
    loads: float = 2.0
    operations: float = 3.0
    fma_latency: float = 4.0
    in_order: bool = False
    memory_bytes: float = 8.0
    cache_bytes: float = 32.0


@dataclass(frozen=True)
class TargetSpec:
    """One CPU that modules are compiled for.

    Sizes are in bytes, widths in bits. `cpu_features` are the names (as the
    Linux kernel prints them) that the machine running the module must have.
    `llvm_attributes` refine `llvm_cpu`; `link_triple` is what the linker is
    given, `libc` apart (`gnu` for shared libraries, `musl` for static ones) and what follows it,
    `link_abi`.
    `bfloat16` says that vectors are rounded to it and multiplied in it. `winograd` says that
    its estimates were found to hold, so that they may choose Winograd's algorithm.
    """

    name: str
    architecture: str
    llvm_triple: str
    llvm_cpu: str
    link_triple: str
    vector_bits: int
    vector_registers: int
    llvm_attributes: tuple[str, ...] = ()
    cpu_features: frozenset[str] = field(default_factory=frozenset)
    cores: int = 1
    l1_bytes: int = 32 * 1024
    l2_bytes: int = 512 * 1024
    l3_bytes: int = 0
    link_abi: str = ""
    pointer_bits: int = 64
    bfloat16: bool = False
    rates: CoreRates = CoreRates()
    winograd: bool = False
    description: str = ""

    @property
    def float_lanes(self) -> int:
        """Number of float32 values in one vector register."""
        return self.vector_bits // 32

    def tvm_target_config(self) -> dict[str, object]:
        """The configuration that `tvm.target.Target` takes for this machine."""
        config: dict[str, object] = {
            "kind": "llvm",
            "mtriple": self.llvm_triple,
            "mcpu": self.llvm_cpu,
            "num-cores": self.cores,
        }
        if self.llvm_attributes:
            config["mattr"] = list(self.llvm_attributes)
        if self.llvm_triple.endswith("eabihf"):
            # TVM does not take it from the triple: expf and its like would get soft-float calls.
            config["mfloat-abi"] = "hard"
        return config


class DetectionError(ValueError):
    """The machine cannot be described, or is older than the oldest supported level."""


class UnknownTargetError(ValueError):
    """No target has this name, or this machine cannot be described."""
