"""Tinsmith: a trained model in; a small, fast, verified module out.

    import compiler

    module = compiler.compile("resnet50.onnx", target="native", output="out/")
    module = compiler.load("out/")
    scores = module({"input": image})

What `__all__` lists is public; everything else may change. Names are resolved on
first use, so that loading and running a module needs neither TVM nor any extra.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# TVM would bind the thread that first runs a module in VM form to one processor, for good.
os.environ.setdefault("TVM_BIND_THREADS", "0")

if TYPE_CHECKING:
    from compiler.api import CompileReport, compile, compile_to
    from compiler.config import CompileConfig
    from compiler.errors import (
        ArtifactError,
        BuildError,
        ConfigError,
        InputError,
        ModelError,
        PassError,
        ShapeError,
        TargetError,
        TinsmithError,
        UnsafeModelError,
        UnsupportedOpError,
        VerificationError,
    )
    from compiler.module.archive import pack
    from compiler.module.loader import Module, load
    from compiler.pruning.config import PruneConfig
    from compiler.quantization.config import QuantizationConfig
    from compiler.tuning.job import tune
    from compiler.tuning.report import TuneOptions, TuneReport

__all__ = [
    "ArtifactError",
    "BuildError",
    "CompileConfig",
    "CompileReport",
    "ConfigError",
    "InputError",
    "ModelError",
    "Module",
    "PassError",
    "PruneConfig",
    "QuantizationConfig",
    "ShapeError",
    "TargetError",
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

_HOMES = {
    "CompileConfig": "compiler.config",
    "PruneConfig": "compiler.pruning.config",
    "QuantizationConfig": "compiler.quantization.config",
    "CompileReport": "compiler.api",
    "Module": "compiler.module.loader",
    "compile": "compiler.api",
    "compile_to": "compiler.api",
    "load": "compiler.module.loader",
    "pack": "compiler.module.archive",
    "TuneOptions": "compiler.tuning.report",
    "TuneReport": "compiler.tuning.report",
    "tune": "compiler.tuning.job",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'compiler' has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "compiler.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
