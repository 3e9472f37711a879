"""A small network written once as a module in all forms."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_networks import NETWORK_INPUT, network_model, random_inputs, reference

from tinsmith.compiler.module.golden import GoldenVectors
from tinsmith.compiler.module.write.writer import write_module


@pytest.fixture(scope="session")
def network_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`network` as a module with golden vectors from TVM's virtual machine; read-only."""
    model = network_model()
    inputs = random_inputs(NETWORK_INPUT)
    golden = GoldenVectors(tuple(inputs), tuple(reference(model, inputs)), 1e-5)
    folder = tmp_path_factory.mktemp("module") / "small"
    return write_module(model, folder, golden=golden, embed_weights=False).path
