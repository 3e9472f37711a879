"""The kernels of a small model, unscheduled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinsmith.compiler.frontends.onnx.model import import_onnx
from tinsmith.compiler.pipeline import lowering
from tinsmith.compiler.tuning.tasks import Task, distinct_kernels
from tinsmith.targets.registry import get_target


@pytest.fixture(scope="session")
def small_tasks(small_model_file: Path) -> tuple[Task, ...]:
    """The tasks of `small_model`, convolutions first."""
    spec = get_target("native")
    imported = import_onnx(small_model_file, {}, {})
    report = lowering(spec).run(imported.module)
    tasks = distinct_kernels(report.fused, spec).values()
    return tuple(sorted(tasks, key=lambda task: task.subject))
