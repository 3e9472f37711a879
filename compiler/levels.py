"""Compiling for several levels into one module: see `tinsmith.compiler.module.levels`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tinsmith.compiler.byte_size import byte_size
from tinsmith.compiler.config import CompileConfig
from tinsmith.compiler.errors import ConfigError, VerificationError
from tinsmith.compiler.module.levels import FILE_NAME, FOLDER_NAME, listing
from tinsmith.compiler.module.manifest import read_manifest
from tinsmith.compiler.module.shared_library import WEIGHTS_NAME
from tinsmith.compiler.module.write.folder import replace_folder, scratch_folder
from tinsmith.compiler.preparation import target_named
from tinsmith.passes.progress import Progress, within
from tinsmith.targets.registry import family_of
from tinsmith.targets.spec import TargetSpec


def target_list(text: str) -> tuple[str, ...]:
    """`x86-64-v3,native` -> ("x86-64-v3", "native"); most texts name one target."""
    return tuple(name.strip() for name in text.split(","))


def ordered_levels(names: tuple[str, ...]) -> tuple[TargetSpec, ...]:
    """The targets of these names, the lowest first: it must run on all machines of the others.

    Raises TargetError for a target that is not known, ConfigError if they are of several
    families or architectures, if one is there twice, or if none is below all others.
    """
    specs = [target_named(name) for name in names]
    first = specs[0]
    for spec in specs[1:]:
        if (family_of(spec), spec.architecture) != (family_of(first), first.architecture):
            raise ConfigError(
                f"--target {','.join(names)}: {spec.name} is {spec.architecture}, {first.name} is "
                f"{first.architecture}; a module has levels of one architecture: compile two"
            )
    for i, spec in enumerate(specs):
        if spec.name in [other.name for other in specs[:i]]:
            raise ConfigError(f"--target {','.join(names)}: {spec.name} is there twice")
    # Of equal instructions, those for the caches of a machine that is known are better.
    specs.sort(key=lambda s: (len(s.cpu_features), s.vector_bits, s.name == "native"))
    lowest = specs[0]
    for spec in specs[1:]:
        if not lowest.cpu_features <= spec.cpu_features:
            raise ConfigError(
                f"--target {','.join(names)}: {lowest.name} does not run on every {spec.name}; "
                "add a level that does"
            )
    return tuple(specs)


def compile_levels(
    output: Path,
    config: CompileConfig,
    progress: Progress | None,
    compile_one: Callable[[Path, CompileConfig, Progress | None], tuple[str, ...]],
) -> tuple[str, ...]:
    """Compile for each level, put all into `output` at once; what there is to say of it.

    `compile_one` compiles with a configuration for one target into a folder, and answers what
    there is to say. Raises what it and `ordered_levels` raise; then `output` is as it was.
    """
    specs = ordered_levels(target_list(config.target))
    if config.pruning is not None:
        raise ConfigError(
            "levels cannot be pruned each in its own way: prune first (tinsmith prune MODEL.onnx "
            "-o small.onnx), then compile that for several targets"
        )
    if config.embed_weights:
        raise ConfigError("embed_weights: the weights of several levels are files")
    notes: list[str] = []
    with scratch_folder(output) as scratch:
        whole = scratch / "module"
        for number, spec in enumerate(specs):
            folder = whole if number == 0 else whole / FOLDER_NAME / spec.name
            part = within(progress, number / len(specs), (number + 1) / len(specs))
            one = replace(config, target=spec.name, embed_weights=False)
            if number:
                one = replace(one, static_library=False, runner=False)
            try:
                told = compile_one(folder, one, part)
            except VerificationError as error:
                raise VerificationError(
                    f"{output}: the level {spec.name} does not compute what the reference does "
                    f"({str(error).partition('; ')[0].rpartition(': ')[2]}); find the cause by "
                    f"compiling for it alone: --target {spec.name}"
                ) from error
            notes += [f"{spec.name}: {line.replace(str(folder), str(output))}" for line in told]
            if number:
                notes.append(_share_weights(whole, folder, spec.name))
        names = [spec.name for spec in specs[1:]]
        (whole / FILE_NAME).write_text(listing(names), encoding="utf-8")
        replace_folder(whole, output)
    return tuple(filter(None, notes))


def _share_weights(whole: Path, folder: Path, name: str) -> str:
    """Deletes the weights of a level that are those of the lowest; a line if they are others."""
    own, lowest = read_manifest(folder).files, read_manifest(whole).files
    if WEIGHTS_NAME not in own:
        return ""
    if own[WEIGHTS_NAME] == lowest.get(WEIGHTS_NAME):
        (folder / WEIGHTS_NAME).unlink()
        return ""
    size = byte_size(own[WEIGHTS_NAME].bytes)
    return f"{name}: weights packed in another way, {size} in a file of their own"
