"""A manifest that somebody else wrote: whatever is wrong with it is one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tinsmith.compiler.errors import ArtifactError
from tinsmith.compiler.module import manifest as manifests
from tinsmith.compiler.module.manifest import read_manifest, update_measured

_VALUES = (None, True, -1, 1.5, 10**30, "text", [[]], {"a": {}})


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    entries: Any = ()
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value[:2])
    for key, entry in entries:
        yield from _paths(entry, (*path, key))


def _changed(data: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(data)
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


@pytest.fixture
def written(network_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """The manifest of a module, with all that can be measured."""
    (tmp_path / "manifest.json").write_bytes((network_folder / "manifest.json").read_bytes())
    latency = {"median_ms": 1.0, "runs": 3, "threads": 2, "cpu": "one"}
    update_measured(tmp_path, latency=latency, accuracy={"top1": 0.5, "images": 10})
    return dict(json.loads((tmp_path / "manifest.json").read_text()))


def _same_type(found: Any, was: Any) -> bool:
    return type(found) is type(was) or (isinstance(was, float) and type(found) is int)


def test_every_field_is_held_to_its_type(written: dict[str, Any], tmp_path: Path) -> None:
    """Wrong types are refused, and whatever is let through is of the type that was there."""
    path = tmp_path / "manifest.json"
    refused = 0
    for where in _paths(written):
        for value in _VALUES:
            path.write_text(json.dumps(_changed(written, where, value)))
            try:
                found = json.loads(read_manifest(tmp_path).to_json())
            except ArtifactError as error:
                assert "\n" not in str(error)
                refused += 1
                continue
            was: Any = written
            for key in where:
                was = was[key]
                found = found.get(key) if isinstance(found, dict) else found[key]
            if value is None and (where[0] == "measured" or where[-1] == "seconds"):
                assert found is None  # as if it had not been measured
                continue
            symbol = where[-2:-1] == ("shape",) and isinstance(value, str)
            free = where[0] == "config" or where[1:2] == ("accuracy",)
            assert symbol or free or _same_type(found, was), (where, value)
    assert refused > 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "not valid JSON"),
        ('{"format": 1, "tolerance": 1e400}', "not valid JSON"),
        ('{"format": 1, "format": 1}', "not valid JSON"),
        ('{"format": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"format": true}', "no format version"),
    ],
)
def test_what_no_manifest_holds(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=message):
        read_manifest(tmp_path)


def test_sizes_names_and_digests(written: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    digest = {"bytes": 1, "blake3": "0" * 64}
    for name in ("a/b", "..", ".", "", "a\\b", "a\0b", "x" * 300):
        path.write_text(json.dumps(_changed(written, ("files", name), digest)))
        with pytest.raises(ArtifactError, match="damaged"):
            read_manifest(tmp_path)
    for wrong in ({"bytes": -1}, {"blake3": "0" * 63}, {"blake3": "G" * 64}, {"bytes": 2**63}):
        path.write_text(json.dumps(_changed(written, ("files", "f"), {**digest, **wrong})))
        with pytest.raises(ArtifactError, match="damaged"):
            read_manifest(tmp_path)
    path.write_text(json.dumps({**written, "inputs": written["inputs"] * 2}))
    with pytest.raises(ArtifactError, match="two inputs have the same name"):
        read_manifest(tmp_path)


def test_a_manifest_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "_LARGEST_MANIFEST", 1000)
    (tmp_path / "manifest.json").write_text(" " * 1001)
    with pytest.raises(ArtifactError, match="too large"):
        read_manifest(tmp_path)


def test_infinite_figures_are_written_as_none(written: dict[str, Any], tmp_path: Path) -> None:
    update_measured(tmp_path, pruning={"ratio": float("nan"), "steps": [float("inf"), 1.0]})
    assert read_manifest(tmp_path).measured.pruning == {"ratio": None, "steps": [None, 1.0]}
