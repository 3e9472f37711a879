"""What is public, and that it stays so."""

from __future__ import annotations

import importlib
import inspect

import pytest

import tinsmith

PUBLIC = [
    "ArtifactError",
    "BuildError",
    "CompileConfig",
    "CompileReport",
    "ConfigError",
    "Context",
    "InputError",
    "ModelError",
    "Module",
    "PassError",
    "PruneConfig",
    "QuantizationConfig",
    "Range",
    "ShapeError",
    "TargetError",
    "TensorEntry",
    "TinsmithError",
    "TuneOptions",
    "TuneReport",
    "UnsafeModelError",
    "UnsupportedOpError",
    "VerificationError",
    "compile",
    "compile_to",
    "load",
    "pack",
    "tune",
]


def test_public_names_are_these() -> None:
    assert tinsmith.__all__ == PUBLIC
    assert dir(tinsmith) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(tinsmith, name)
    assert value.__name__ == name
    assert inspect.getdoc(value)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="import_onnx"):
        tinsmith.import_onnx  # noqa: B018


def test_every_error_is_public_and_has_one_base() -> None:
    errors = importlib.import_module("tinsmith.compiler.errors")
    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    defined = [value for value in classes if value.__module__ == "tinsmith.compiler.errors"]
    assert {value.__name__ for value in defined} <= set(PUBLIC)
    assert all(issubclass(value, tinsmith.TinsmithError) for value in defined)
