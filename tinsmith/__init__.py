"""Tinsmith: a trained model in; a small, fast, verified module out.

    import tinsmith

    module = tinsmith.compile("resnet50.onnx", target="native", output="out/")
    module = tinsmith.load("out/")
    scores = module(input=image)["output"]  # a numpy array

What `__all__` lists is public; everything else may change. Names are resolved on
first use, so that loading and running a module needs neither TVM nor any extra.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# TVM would bind the thread that first runs a module in VM form to one processor, for good.
os.environ.setdefault("TVM_BIND_THREADS", "0")
# And it takes half of the processors of an x86 for hyper-threads, which those of a cloud are not.
os.environ.setdefault("TVM_NUM_THREADS", str(len(os.sched_getaffinity(0))))
# Whoever wants to read along adds a handler: `logging.basicConfig(level="INFO")`.
logging.getLogger("tinsmith").addHandler(logging.NullHandler())

if TYPE_CHECKING:
    from tinsmith.compiler.api import CompileReport, compile, compile_to
    from tinsmith.compiler.config import CompileConfig
    from tinsmith.compiler.dimensions.ranges import Range
    from tinsmith.compiler.errors import (
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
    from tinsmith.compiler.module.archive import pack
    from tinsmith.compiler.module.loader import Context, Module, load
    from tinsmith.compiler.module.manifest import TensorEntry
    from tinsmith.compiler.pruning.config import PruneConfig
    from tinsmith.compiler.quantization.config import QuantizationConfig
    from tinsmith.compiler.tuning.job import tune
    from tinsmith.compiler.tuning.report import TuneOptions, TuneReport

__all__ = [
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

_HOMES = {
    "CompileConfig": "tinsmith.compiler.config",
    "PruneConfig": "tinsmith.compiler.pruning.config",
    "QuantizationConfig": "tinsmith.compiler.quantization.config",
    "Range": "tinsmith.compiler.dimensions.ranges",
    "CompileReport": "tinsmith.compiler.api",
    "Context": "tinsmith.compiler.module.loader",
    "Module": "tinsmith.compiler.module.loader",
    "TensorEntry": "tinsmith.compiler.module.manifest",
    "compile": "tinsmith.compiler.api",
    "compile_to": "tinsmith.compiler.api",
    "load": "tinsmith.compiler.module.loader",
    "pack": "tinsmith.compiler.module.archive",
    "TuneOptions": "tinsmith.compiler.tuning.report",
    "TuneReport": "tinsmith.compiler.tuning.report",
    "tune": "tinsmith.compiler.tuning.job",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tinsmith' has no attribute {name!r}")
    home = _HOMES.get(name, "tinsmith.compiler.errors")
    try:
        value = getattr(import_module(home), name)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("tinsmith."):
            raise
        raise ImportError(
            f"tinsmith.{name} belongs to the compiler, and {os.path.dirname(__file__)} is the part "
            "of tinsmith-runtime that runs modules: pip install tinsmith"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
