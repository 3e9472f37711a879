"""Layers that are slower in integers go back to float, if that makes the model faster."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tinsmith.compiler.evaluate.layer_timing import Timing
from tinsmith.compiler.quantization.workbench import Candidate, Workbench

# A layer is slower in integers beyond both of these: clocks and other load are not steady.
_LAYER_RATIO = 1.1
_LAYER_SECONDS = 5e-6
# The whole model must gain this share by what goes back, or nothing does.
_GAIN = 0.02


@dataclass(frozen=True)
class Speed:
    """A candidate with the timings of the float model and its own.

    `tried` is the timing with all those layers in integers that went back to float: `returned`,
    empty if none did. `notes` are for the report.
    """

    candidate: Candidate
    exact: Timing
    own: Timing
    tried: Timing | None = None
    returned: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def measured(
    bench: Workbench,
    candidate: Candidate,
    fallback: bool,
    accepts: Callable[[Candidate], bool] | None = None,
) -> Speed:
    """Time `candidate`; with `fallback`, the one that is faster with slow layers in float.

    A layer that takes longer in integers, with the conversions that it forces, is kept in
    float on trial; the trial wins only if the whole model is faster, measured in turns, and
    if it is acceptable otherwise. Nothing is decided by times that other load has spoiled.
    """
    exact, own = bench.measure(candidate)
    if not steady(exact, own):
        return Speed(candidate, exact, own, notes=(_unsteady_note(exact, own),))
    mixture = candidate.prepared.mixture
    slow = slower_layers(exact, own, integer_layers(candidate))
    if not slow or not fallback or mixture is None:
        return Speed(candidate, exact, own, notes=_slow_notes(exact, own, slow))
    kept = candidate.prepared.kept | dict.fromkeys(slow, "float")
    trial = bench.candidate(mixture.keeping(kept))
    exact, before, after = bench.measure(candidate, trial)
    if not steady(exact, before, after):
        bench.discard(trial)
        return Speed(candidate, exact, before, notes=(_unsteady_note(exact, before, after),))
    faster = after.total <= (1 - _GAIN) * before.total
    if not faster or (accepts is not None and not accepts(trial)):
        bench.discard(trial)
        return Speed(candidate, exact, before, notes=_slow_notes(exact, before, slow))
    bench.discard(candidate)
    told = f"{_listed(slow)} went back to float32: slower in integers"
    return Speed(trial, exact, after, before, slow, (told, *_slow_notes(exact, after, ())))


def steady(*timings: Timing) -> bool:
    """Whether all of the times are good enough to decide by them."""
    return all(timing.is_steady for timing in timings)


def _unsteady_note(*timings: Timing) -> str:
    spread = max(timing.spread for timing in timings)
    return (
        f"warning: the times were taken under other load (equal runs differ by {spread:.0%}): they "
        "say little, and no layer went back to float32 for them; compile again on a quiet machine"
    )


def integer_layers(candidate: Candidate) -> tuple[str, ...]:
    """Names of the layers that compute in integers."""
    return tuple(layer.name for layer in candidate.prepared.layers if layer.computes == "integer")


def slower_layers(exact: Timing, own: Timing, names: Iterable[str]) -> tuple[str, ...]:
    """The layers that take longer in integers than in float32, by a clear margin."""
    return tuple(
        name
        for name in names
        if name in exact.layers
        and own.layers.get(name, 0.0) > _LAYER_RATIO * exact.layers[name]
        and own.layers[name] - exact.layers[name] > _LAYER_SECONDS
    )


def _slow_notes(exact: Timing, own: Timing, slow: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    if slow:
        notes.append(f"{_listed(slow)} are slower in integers than in float32, and stay")
    if own.total > (1 + _GAIN) * exact.total:
        notes.append(
            f"warning: this module is slower than the float32 module on this machine, "
            f"{own.total * 1e3:.3f} ms against {exact.total * 1e3:.3f} ms: compile without "
            "--quantize unless its size matters more"
        )
    return tuple(notes)


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} layer{'s' if len(names) != 1 else ''} ({shown})"
