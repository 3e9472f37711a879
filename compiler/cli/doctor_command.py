"""`tinsmith doctor`: is everything there that models need, and what is known to go wrong here?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tinsmith.compiler.byte_size import byte_size
from tinsmith.compiler.cli import output
from tinsmith.compiler.cli.options import AsJson

if TYPE_CHECKING:
    from tinsmith.compiler.doctor import Health


@output.reported
def examine(as_json: AsJson = False) -> None:
    """Tell what is installed, what the CPU offers, which folders are written, and known pitfalls.

    Exits with 2 if nothing can be compiled before something is mended.

    **Example:** `tinsmith doctor`, or `tinsmith doctor --json` for a bug report
    """
    with output.progress_bar("doctor", hidden=as_json) as show:
        from tinsmith.compiler.doctor import examine as look

        health = look(show)
    if as_json:
        output.print_json(health.to_dict())
    else:
        _print(health)
    if not health.works:
        raise typer.Exit(2)


def _print(health: Health) -> None:
    output.say(f"Tinsmith {health.tinsmith}, TVM {health.tvm or 'missing'}, Python {health.python}")
    output.say(f"system: {health.system}")
    output.say(f"CPU: {health.cpu}: {' '.join(health.features) or 'no features known'}")
    output.say(f"native target: {health.target}, vectors of {health.vector_bits} bits")
    quota = "" if health.quota is None else f", {health.quota:g} of them by quota"
    output.say(f"processors: {health.usable} of {health.processors} may be used{quota}")
    for name, value in health.variables.items():
        output.say(f"environment: {name}={value}")
    output.print_table(
        "packages",
        ("package", "version", "for"),
        [
            (
                package.name,
                package.version or "not installed",
                ", ".join(package.extras) or "everything",
            )
            for package in health.packages
        ],
        left=3,
    )
    output.print_table(
        "folders",
        ("folder", "for", "writable", "free"),
        [
            (
                place.path,
                place.purpose,
                "yes" if place.writable else "NO",
                byte_size(place.free_bytes),
            )
            for place in health.places
        ],
        left=2,
    )
    for pitfall in health.pitfalls:
        mark = "PROBLEM" if pitfall.fatal else "note"
        output.say(f"{mark}: {pitfall.problem}; {pitfall.remedy}")
    output.say("models can be compiled" if health.works else "nothing can be compiled yet")
