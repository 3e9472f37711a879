"""A graph between two steps as one file: `prune` writes it, and every step reads it like a model.

It is JSON compressed by Zstandard: the graph as TVM serialises it, the names of its inputs and
outputs, and what was done to it. A file is data and nothing else: a graph that calls anything but
operators of Relax is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import zstandard
from tvm import relax

from tinsmith.compiler.dimensions.ranges import Size
from tinsmith.compiler.errors import ModelError, ShapeError
from tinsmith.compiler.evaluate.inputs import Domain
from tinsmith.compiler.frontends.forked import ToolError, forked
from tinsmith.compiler.frontends.imported import ImportedModel, described_outputs
from tinsmith.compiler.module.manifest import write_atomically
from tinsmith.compiler.module.regular_file import open_regular
from tinsmith.compiler.module.version import tinsmith_version
from tinsmith.compiler.plain_text import is_plain
from tinsmith.passes.graph.tensors import element_type, operator_name, static_shape

FORMAT = 1
_LEVEL = 3
# Weights that are zero pack well, but no graph packs better than this.
_LARGEST, _TIMES_COMPRESSED = 2**28, 20
_WINDOW = 2**27
_SECONDS = 10.0
# Operators of Relax that run code which the graph only names.
_FOREIGN = ("relax.call_", "relax.invoke_", "relax.builtin.", "relax.vm.", "relax.memory.")


def write_checkpoint(
    path: Path,
    module: tvm.IRModule,
    imported: ImportedModel,
    pruning: Mapping[str, Any] | None = None,
) -> None:
    """Write a graph that was made of the model `imported`, with its inputs and outputs.

    `pruning` is the report of its pruning as plain data. An existing file is replaced at once or
    not at all; raises OSError if it cannot be written.
    """
    content = {
        "format": FORMAT,
        "tinsmith": tinsmith_version(),
        "tvm": tvm.__version__,
        "source": Path(imported.source).name,
        "inputs": list(imported.input_names),
        "outputs": list(imported.output_names),
        "bounds": {name: _bounds(domain) for name, domain in imported.domains.items()},
        "pruning": pruning,
        "graph": tvm.ir.save_json(module),
    }
    text = json.dumps(content, default=str).encode()
    write_atomically(path, zstandard.ZstdCompressor(level=_LEVEL).compress(text))


def read_checkpoint(
    path: Path, shapes: Mapping[str, Sequence[Size]], constants: Mapping[str, np.ndarray]
) -> ImportedModel:
    """The graph in a file that `write_checkpoint` wrote.

    Raises ModelError for a file that is not one or is damaged, of another format, or that calls
    foreign code, and ShapeError for `shapes` and `constants` that are not the checkpoint's.
    """
    content = _content(path)
    try:
        # What deserialises a graph trusts the file: a damaged one may crash it.
        size = len(content["graph"])
        forked(lambda: _rehearsed(path, content), _SECONDS + size / 1e6, size)
    except (KeyError, TypeError, ToolError) as error:
        reason = f": {error}" if isinstance(error, ToolError) else ""
        raise ModelError(
            f"{path}: damaged, its graph cannot be read; write it again{reason}"
        ) from error
    try:
        module = tvm.ir.load_json(content["graph"])
        names, outputs = tuple(content["inputs"]), tuple(content["outputs"])
        domains = {str(name): _domain(value) for name, value in content["bounds"].items()}
        pruning = content["pruning"]
    except Exception as error:
        raise ModelError(f"{path}: damaged, its graph cannot be read; write it again") from error
    for name in (*names, *outputs):
        if not isinstance(name, str) or not is_plain(name):
            raise ModelError(f"{path}: damaged, {name!r} is not a name")
    parameters = _checked(path, module)
    if len(parameters) != len(names):
        raise ModelError(f"{path}: damaged, {len(parameters)} inputs have {len(names)} names")
    described = described_outputs(module, str(path))
    if len(described) != len(outputs):
        raise ModelError(f"{path}: damaged, {len(described)} outputs have {len(outputs)} names")
    _check_asked(path, dict(zip(names, (shape for shape, _ in parameters), strict=True)),
                 shapes, constants)  # fmt: skip
    return ImportedModel(
        module=module,
        source=str(path),
        input_names=names,
        input_shapes=tuple(shape for shape, _ in parameters),
        input_dtypes=tuple(dtype for _, dtype in parameters),
        output_names=outputs,
        output_shapes=tuple(shape for shape, _ in described),
        output_dtypes=tuple(dtype for _, dtype in described),
        domains=domains,
        notes=_notes(content.get("source"), pruning),
        reference=None,
        node_names={},
    )


def _bounds(domain: Domain) -> list[float | None]:
    """The smallest and largest value as JSON has them: null for none."""
    return [bound if math.isfinite(bound) else None for bound in (domain.low, domain.high)]


def _domain(value: Any) -> Domain:
    """The domain of `_bounds`; a number is how many integers from 0 on, as it was once written."""
    if isinstance(value, int):
        return Domain.below(value)
    low, high = value
    return Domain(
        -math.inf if low is None else float(low), math.inf if high is None else float(high)
    )


def _rehearsed(path: Path, content: Mapping[str, Any]) -> bytes:
    """Read the graph as `read_checkpoint` does; what is wrong with it comes out there again."""
    module = tvm.ir.load_json(content["graph"])
    try:
        _checked(path, module)
        described_outputs(module, str(path))
    except ModelError:
        return b""
    return b""


def _content(path: Path) -> dict[str, Any]:
    """The file's fields; ModelError for another file."""
    try:
        with open(open_regular(path), "rb") as file:
            data = file.read()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    most = max(_LARGEST, _TIMES_COMPRESSED * len(data))
    try:
        with zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(data) as stream:
            text = stream.read(most + 1)
        if len(text) > most:
            raise ModelError(f"{path}: not a checkpoint, it unpacks to more than {most} bytes")
        content = json.loads(text)
    except (zstandard.ZstdError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not a checkpoint, or a truncated one") from error
    written = content.get("format") if isinstance(content, dict) else None
    if written != FORMAT:
        raise ModelError(
            f"{path}: a checkpoint of format {written}, this Tinsmith reads format {FORMAT}; "
            "write it again"
        )
    if content.get("tvm") != tvm.__version__:
        raise ModelError(
            f"{path}: written with TVM {content.get('tvm')}, here is {tvm.__version__}; "
            "prune the model again"
        )
    return dict(content)


def _checked(path: Path, module: object) -> list[tuple[tuple[int, ...], str]]:
    """Shape and dtype of each parameter; ModelError for a graph that no importer would make."""
    functions = list(module.functions.items()) if isinstance(module, tvm.IRModule) else []
    main = functions[0][1] if len(functions) == 1 else None
    if not isinstance(main, relax.Function) or functions[0][0].name_hint != "main":
        raise ModelError(f"{path}: damaged, it has no graph `main` alone")
    foreign: set[str] = set()

    def visit(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Call):
            name = operator_name(expr)
            if name is None or not name.startswith("relax.") or name.startswith(_FOREIGN):
                foreign.add(name or str(expr.op))
        elif isinstance(expr, (relax.ExternFunc, tvm.ir.GlobalVar)):
            foreign.add(str(expr))

    relax.analysis.post_order_visit(main, visit)
    if foreign:
        raise ModelError(
            f"{path}: calls {', '.join(sorted(foreign)[:3])}, which is no operator of a model"
        )
    try:
        relax.analysis.well_formed(module)
    except Exception as error:
        raise ModelError(f"{path}: damaged, its graph is not well formed") from error
    parameters = []
    for parameter in main.params:
        shape, dtype = static_shape(parameter), element_type(parameter)
        if shape is None or dtype is None:
            raise ModelError(f"{path}: damaged, the shape of input {parameter.name_hint} is open")
        parameters.append((shape, dtype))
    return parameters


def _check_asked(
    path: Path,
    known: Mapping[str, tuple[int, ...]],
    shapes: Mapping[str, Sequence[Size]],
    constants: Mapping[str, np.ndarray],
) -> None:
    for name, shape in shapes.items():
        if tuple(shape) != known.get(name):
            have = ", ".join(f"{n}={','.join(map(str, s))}" for n, s in known.items())
            raise ShapeError(f"{path}: --shape {name}: a checkpoint keeps its shapes, {have}")
    if constants:
        raise ShapeError(
            f"{path}: --constant {', '.join(constants)}: a checkpoint's inputs are fixed; "
            "bind them when the model is pruned"
        )


def _notes(source: object, pruning: Mapping[str, Any] | None) -> tuple[str, ...]:
    if not pruning:
        return ()
    goal = pruning.get("goal", "")
    return (f"pruned before, from {source}: {goal} by {pruning.get('criterion', '')}",)
