"""How pruning is spread over several steps, with recovery between them."""

from __future__ import annotations

SCHEDULES = ("linear", "polynomial")


def progress_of_steps(schedule: str, steps: int) -> tuple[float, ...]:
    """The share of what is to go that has gone after each of `steps` steps; the last is 1.

    "linear": the same at each step. "polynomial": 1 - (1 - t/n)^3, much at first, while there
    is most to spare. One step is pruning in one shot. Source of the polynomial: Zhu and Gupta
    2017, "To prune, or not to prune", equation 1, from sparsity 0 (arXiv:1710.01878).

    Raises ValueError for an unknown schedule or no step.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule}: {', '.join(SCHEDULES)}")
    if steps < 1:
        raise ValueError(f"pruning takes at least one step, not {steps}")
    power = 1 if schedule == "linear" else 3
    return tuple(1 - (1 - step / steps) ** power for step in range(1, steps + 1))
