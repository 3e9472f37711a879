"""Every error that a user can cause, under one base class.

The command line prints the message as one line and exits with the error's
`exit_code`; a message therefore names the file, node or option at fault and
says what to do about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tinsmith.compiler.plain_text import plain_line


class TinsmithError(Exception):
    """Base class of all errors raised on purpose.

    The message quotes names from files that are not trusted; it is one plain line all the same.
    """

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(plain_line(message))


class ModelError(TinsmithError):
    """The model file cannot be read, is malformed, or contradicts itself."""


class UnsafeModelError(ModelError):
    """The model file refers to something outside its own folder or lies about sizes."""


class UnsupportedOpError(ModelError):
    """The model uses operators that no converter knows.

    `operators` maps an operator's qualified name to the names of the nodes using it.
    """

    def __init__(self, source: str, operators: Mapping[str, Sequence[str]]) -> None:
        self.operators = {name: tuple(nodes) for name, nodes in operators.items()}
        listed = "; ".join(
            f"{name} x{len(nodes)} ({', '.join(nodes[:3])}{', ...' if len(nodes) > 3 else ''})"
            for name, nodes in sorted(self.operators.items())
        )
        super().__init__(f"{source}: unsupported operators: {listed}")


class ShapeError(ModelError):
    """A shape given by the user or found in the model does not fit."""


class ConfigError(TinsmithError):
    """An option has a value that makes no sense."""


class TargetError(TinsmithError):
    """The target is unknown, or cannot do what is asked of it."""


class BuildError(TinsmithError):
    """Code generation or linking failed; the message carries the tool's command and output."""


class ArtifactError(TinsmithError):
    """A compiled module is corrupted, of a foreign format, or for another machine."""


class InputError(TinsmithError):
    """Data given to a module does not have the declared shape or dtype."""


class VerificationError(TinsmithError):
    """A module's results disagree with the reference."""

    exit_code = 1


class PassError(TinsmithError):
    """A compiler pass failed or produced an ill-formed module: a bug in Tinsmith.

    `passes_before` names the passes that ran before it, in order.
    """

    exit_code = 70

    def __init__(self, message: str, passes_before: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.passes_before = tuple(passes_before)
