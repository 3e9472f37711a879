"""Files that once failed, and a few new ones: see README.md, `make fuzz`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.__main__ import FAILURES, Nursery, make, write_sample
from tests.fuzz.models import samples

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.onnx"))
# Well-formed, and compiled: one broke because a tensor is called like the graph's function.
_VALID = {"import11_276", "two_outputs_one_file_name"}
_MUTANTS = 32
_PROCESSOR_SECONDS = 10


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as started:
        yield started


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_files_that_failed_once(path: Path, nursery: Nursery) -> None:
    answer = nursery.ask(path, "import", _PROCESSOR_SECONDS)
    assert answer["outcome"] in ("good", "refused"), answer["detail"]
    if path.stem in _VALID:
        assert answer["outcome"] == "good", answer["detail"]


def test_the_samples_are_sound(nursery: Nursery, tmp_path: Path) -> None:
    """Mutants of a model that is refused anyway would find nothing."""
    for name, sample in samples().items():
        answer = nursery.ask(write_sample(sample, tmp_path / name), "import", _PROCESSOR_SECONDS)
        assert answer["outcome"] == "good", (name, answer["detail"])


def test_new_mutants(nursery: Nursery, tmp_path: Path) -> None:
    originals = samples()
    for number in range(_MUTANTS):
        name, sample = make(number, 1, originals, sorted(originals))
        path = write_sample(sample, tmp_path / "mutant")
        answer = nursery.ask(path, "import", _PROCESSOR_SECONDS)
        assert answer["outcome"] not in FAILURES, (number, name, answer)
