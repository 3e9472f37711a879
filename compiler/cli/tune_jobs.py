"""`tinsmith tune --job jobs.toml`: several models, one after the other, with a summary."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinsmith.compiler.cli import output
from tinsmith.compiler.cli.tune_command import quantization_of, tune_shown
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.errors import ConfigError, TinsmithError

if TYPE_CHECKING:
    from tinsmith.compiler.tuning.report import TuneOptions, TuneReport

_OPTIONS = ("minutes", "trials", "tasks", "seed", "rpc", "key")
_NUMBER, _INTEGER, _TEXT = (int, float), (int,), (str,)
_KEYS: Mapping[str, tuple[type, ...]] = {
    "model": _TEXT,
    "target": _TEXT,
    "minutes": _NUMBER,
    "trials": _INTEGER,
    "tasks": _INTEGER,
    "seed": _INTEGER,
    "threads": _INTEGER,
    "shapes": (dict,),
    "quantize": _TEXT,
    "calibration": _TEXT,
    "rpc": _TEXT,
    "key": _TEXT,
}
_EXPECTED: Mapping[tuple[type, ...], str] = {
    _NUMBER: "a number",
    _INTEGER: "an integer",
    _TEXT: "text",
    (dict,): "a table such as { input = [1, 3, 224, 224] }",
}


def read_jobs(path: Path) -> list[dict[str, Any]]:
    """The tables of the file, with models relative to its folder. Raises ConfigError."""
    # Python 3.10 has none of its own: there tomli, which became tomllib, is required.
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    if path.exists() and not path.is_file():
        raise ConfigError(f"--job {path}: is not a file")
    try:
        content = toml.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--job {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--job {path}: {error}") from error
    jobs = content.get("job")
    if set(content) != {"job"} or not isinstance(jobs, list) or not jobs:
        raise ConfigError(f"--job {path}: expected [[job]] tables and nothing else")
    for number, job in enumerate(jobs, 1):
        where = f"--job {path}: job {number}"
        if not isinstance(job, dict):
            raise ConfigError(f"{where}: expected a [[job]] table, not {job!r}"[:300])
        unknown = sorted(set(job) - set(_KEYS))
        if unknown:
            raise ConfigError(
                f"{where}: unknown key {unknown[0]}; known are {', '.join(sorted(_KEYS))}"
            )
        for key, value in job.items():
            _check(value, _KEYS[key], f"{where}: {key}")
        for name, shape in job.get("shapes", {}).items():
            dims = shape if isinstance(shape, list) else [shape]
            if not isinstance(shape, list) or not all(map(_is_size, dims)):
                raise ConfigError(
                    f"{where}: shapes: {name} must be a list of sizes such as [1, 3, 224, 224], "
                    f"not {shape!r}"[:300]
                )
        if "model" not in job:
            raise ConfigError(f'{where}: no model = "FILE.onnx"')
        job["model"] = path.parent / job["model"]
    return jobs


def _check(value: object, types: tuple[type, ...], what: str) -> None:
    """Raise ConfigError unless the value has one of the types."""
    if not isinstance(value, types) or isinstance(value, bool):
        raise ConfigError(f"{what} must be {_EXPECTED[types]}, not {value!r}"[:300])


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def run_jobs(path: Path, log: Path | None, resume: bool, fresh: bool, as_json: bool) -> None:
    """Run every job; one that fails is told in the summary and does not stop the others.

    Raises ConfigError before the first begins if the file is wrong, and at the end if a job
    has failed.
    """
    jobs = []
    for number, job in enumerate(read_jobs(path), 1):
        try:
            jobs.append((job["model"], *_parsed(job, log, resume, fresh)))
        except ConfigError as error:
            raise ConfigError(f"--job {path}: job {number}: {error}") from error
    done: list[tuple[Path, str, TuneReport | TinsmithError]] = []
    for model, config, options in jobs:
        try:
            report = tune_shown(model, config, options, hidden=as_json)
            done.append((model, config.target, report))
        except TinsmithError as error:
            done.append((model, config.target, error))
    if as_json:
        output.print_json(
            [
                {"model": str(model), "target": target, "error": str(result)}
                if isinstance(result, TinsmithError)
                else result.to_dict()
                for model, target, result in done
            ]
        )
    else:
        rows = [(model.name, target, _told(result)) for model, target, result in done]
        output.print_table("jobs", ("model", "target", "result"), rows, left=3)
    failed = [
        f"{model.name} for {target}"
        for model, target, result in done
        if isinstance(result, TinsmithError)
    ]
    if failed:
        raise ConfigError(f"{len(failed)} of {len(done)} jobs failed: {', '.join(failed)}")


def _parsed(
    job: Mapping[str, Any], log: Path | None, resume: bool, fresh: bool
) -> tuple[CompileConfig, TuneOptions]:
    from tinsmith.compiler.tuning.report import TuneOptions

    config = CompileConfig(
        target=job.get("target", "native"),
        shapes=job.get("shapes", {}),
        threads=job.get("threads", 0),
        quantization=quantization_of(job.get("quantize"), job.get("calibration")),
    )
    chosen = {name: job[name] for name in _OPTIONS if name in job}
    return config, TuneOptions(**chosen, log=log, resume=resume, fresh=fresh)


def _told(result: TuneReport | TinsmithError) -> str:
    if isinstance(result, TinsmithError):
        return " ".join(f"failed: {result}".split())
    return result.summary()
