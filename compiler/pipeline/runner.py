"""Runs steps one by one: conditions and modules are checked, time is taken, dumps are written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm
import tvm_ffi
from tvm import relax

from tinsmith.compiler.errors import ConfigError, PassError, TinsmithError
from tinsmith.compiler.pipeline.step import Outcome
from tinsmith.passes.graph.conditions import Condition
from tinsmith.targets.template import KernelReport

# Who interrupts a pass most likely interrupts a function that TVM has called; TVM hands on the
# errors that it knows by name, and makes a RuntimeError without a word of all others.
tvm_ffi.register_error(KeyboardInterrupt)


@dataclass(frozen=True)
class PassTiming:
    """Time that one pass took, and the bindings (calls, mostly) of the graph after it."""

    name: str
    seconds: float
    verification_seconds: float
    bindings: int


class PassRunner:
    """Runs passes one by one; verifies, times and dumps the module after each.

    `kernels` and `notes` are what the steps have told so far.
    """

    def __init__(self, dump: Path | None = None) -> None:
        self.timings: list[PassTiming] = []
        self.dumped: list[Path] = []
        self.kernels: tuple[KernelReport, ...] = ()
        self.notes: list[str] = []
        self._folder = dump

    def run(
        self,
        name: str,
        step: Callable[[tvm.IRModule], tvm.IRModule | Outcome],
        module: tvm.IRModule,
    ) -> tvm.IRModule:
        """The module after the pass; raises PassError if it fails or breaks the module.

        The same if the module has not what the pass requires, or afterwards not what it ensures.
        What a pass refuses on purpose, and the user can mend, is raised as it is.
        """
        begin = time.perf_counter()
        self._check(name, "requires", step, module)
        required = time.perf_counter()
        try:
            outcome = step(module)
        except TinsmithError:
            raise
        except Exception as error:
            raise self._error(f"pass {name} failed: {_first_line(error)}") from error
        end = time.perf_counter()
        if not isinstance(outcome, Outcome):
            outcome = Outcome(outcome)
        module = outcome.module
        self._write(name, module)
        verified = time.perf_counter()
        self.verify(module, f"pass {name} failed: the module after it")
        self._check(name, "ensures", step, module)
        checked = time.perf_counter() - verified + required - begin
        self.timings.append(PassTiming(name, end - required, checked, count_bindings(module)))
        self.kernels += outcome.kernels
        self.notes += outcome.notes
        return module

    def verify(self, module: tvm.IRModule, what: str) -> None:
        """Raise PassError if the module is not well-formed."""
        try:
            relax.analysis.well_formed(module)
        except Exception as error:
            raise self._error(f"{what} is ill-formed: {_first_line(error)}") from error

    def _check(self, name: str, kind: str, step: object, module: tvm.IRModule) -> None:
        conditions: Sequence[Condition] = getattr(step, kind, ())
        for condition in conditions:
            tensor = condition.violation(module)
            if tensor is not None:
                raise self._error(
                    f"pass {name} {kind} {condition.told}, and tensor {tensor} contradicts that"
                )

    def _error(self, message: str) -> PassError:
        where = "--dump DIR writes the module after each pass"
        if self._folder is not None:
            where = f"the module after each pass is in {self._folder}"
        return PassError(
            f"{message} (this is a bug in Tinsmith; {where})",
            [timing.name for timing in self.timings],
        )

    def _write(self, name: str, module: tvm.IRModule) -> None:
        if self._folder is None:
            return
        path = self._folder / f"{len(self.timings):02d}_{name}.py"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path.write_text(module.script(show_meta=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"--dump {self._folder}: cannot write {path.name}: {error}"
            ) from error
        self.dumped.append(path)


def count_bindings(module: tvm.IRModule) -> int:
    """Number of bindings in the Relax functions of a module."""
    bodies: Sequence[relax.Expr] = [
        function.body
        for _, function in module.functions_items()
        if isinstance(function, relax.Function)
    ]
    return sum(
        len(block.bindings)
        for body in bodies
        if isinstance(body, relax.SeqExpr)
        for block in body.blocks
    )


def _first_line(error: Exception) -> str:
    """The line of an error that says what is wrong; TVM puts a backtrace around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "Error" in line or "Check failed" in line]
    return (told or lines or [type(error).__name__])[0]
