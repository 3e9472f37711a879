"""`tinsmith demo`: the embedded network through everything, in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinsmith.compiler.cli import bench_command, early, output, verify_command
from tinsmith.compiler.cli.options import AsJson, Threads
from tinsmith.compiler.demo import IMAGES, MODEL
from tinsmith.compiler.errors import VerificationError


@output.reported
def run_demo(
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to leave the module in.")
    ] = Path("tinsmith-demo"),
    target: Annotated[
        str, typer.Option(metavar="NAME", help="The machine to compile for.")
    ] = "native",
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """Compile, verify, evaluate and benchmark a small network trained on Fashion-MNIST.

    **Example:** `tinsmith demo -o demo/`
    """
    early.check_target(target)
    early.check_new_folder(out)
    with output.progress_bar("demo: compile", hidden=as_json) as show:
        from tinsmith.compiler.api import compile_to
        from tinsmith.compiler.evaluate.accuracy import LabelledImages, top1
        from tinsmith.compiler.evaluate.bench import bench
        from tinsmith.compiler.evaluate.verify import verify
        from tinsmith.compiler.module.loader import load
        from tinsmith.compiler.module.manifest import update_measured

        report = compile_to(MODEL, out, target=target, progress=show)
    if not as_json:
        output.say(f"compiled: {report.path}: {report.summary()}")

    with output.progress_bar("demo: verify", hidden=as_json) as show:
        checks = verify(out, MODEL, samples=3, seed=1, threads=threads, progress=show)
    if not as_json:
        verify_command.print_report(checks)

    data = LabelledImages.read(IMAGES)
    module = load(out, threads=threads)
    with output.progress_bar("demo: evaluate", hidden=as_json) as show:
        accuracy = top1(
            lambda image: module({"image": image})["logits"],
            data,
            show,
        )
    update_measured(out, accuracy={"top1": accuracy.top1, "images": accuracy.total})
    if not as_json:
        output.say(
            f"accuracy: {accuracy.top1:.1%} top-1 ({accuracy.correct} of {accuracy.total} "
            "labelled Fashion-MNIST test images)"
        )

    with output.progress_bar("demo: bench", hidden=as_json) as show:
        timings = bench(out, MODEL, 100, threads, show)
    if as_json:
        output.print_json(
            {
                "compile": report.to_dict(),
                "verify": checks.to_dict(),
                "accuracy": {"top1": accuracy.top1, "images": accuracy.total},
                "bench": timings.to_dict(),
            }
        )
    else:
        bench_command.print_report(timings)
        output.say(f"the module is in {out}; look into it: tinsmith inspect {out}")
    if not checks.agrees:
        raise VerificationError(f"{out}: the module does not agree with its reference")
