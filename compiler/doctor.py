"""What an installation consists of, what the machine offers, and what is known to go wrong.

Nothing heavy is imported here: TVM is tried in a process of its own, which it may end.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinsmith.compiler.module.machine import cpu_features
from tinsmith.compiler.module.version import tinsmith_version
from tinsmith.compiler.processes import child_environment, describe_exit
from tinsmith.compiler.user_folders import cache_folder, tool_cache
from tinsmith.passes.progress import Progress
from tinsmith.targets.machine_at_hand import first_processor
from tinsmith.targets.registry import NATIVE, get_target
from tinsmith.targets.spec import DetectionError, UnknownTargetError

# Features that kernels make use of, of all families.
_FEATURES = (
    "avx2", "fma", "f16c", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8",
    "amx_bf16", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve",
)  # fmt: skip
# What pip calls the packages that others are compared with.
_PEERS = ("onnxruntime", "openvino")
# Two distributions with one module: whichever was installed last lies over the other.
_RIVALS = (("xgboost-cpu", "xgboost"), ("onnxruntime", "onnxruntime-gpu"))
_VARIABLES = ("OMP_NUM_THREADS", "XDG_CACHE_HOME", "TMPDIR", "ZIG_GLOBAL_CACHE_DIR")
_LEAST_FREE_BYTES = 2 * 2**30
_IMPORT_SECONDS = 120
_CGROUP = Path("/sys/fs/cgroup")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True)
class Pitfall:
    """Something that goes wrong, or will: what it is and what to do about it.

    `fatal` is whether nothing can be compiled before it is mended.
    """

    problem: str
    remedy: str
    fatal: bool = False


@dataclass(frozen=True)
class Package:
    """A distribution: its version, None if it is not installed, and the extras that need it."""

    name: str
    version: str | None
    extras: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """A folder that is written to; `free_bytes` of its disk, 0 where that is not known."""

    purpose: str
    path: str
    writable: bool
    free_bytes: int


@dataclass(frozen=True)
class Health:
    """All that was found out. `vector_bits` is 0 on a machine that no family knows."""

    tinsmith: str
    python: str
    system: str
    tvm: str
    cpu: str
    target: str
    vector_bits: int
    features: tuple[str, ...]
    processors: int
    usable: int
    quota: float | None
    variables: dict[str, str]
    packages: tuple[Package, ...]
    places: tuple[Place, ...]
    pitfalls: tuple[Pitfall, ...]

    @property
    def works(self) -> bool:
        """Whether nothing was found that keeps models from being compiled."""
        return not any(pitfall.fatal for pitfall in self.pitfalls)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; sizes in bytes, the quota in processors."""
        return asdict(self) | {"works": self.works}


def examine(progress: Progress | None = None) -> Health:
    """Look at the installation and the machine; takes as long as TVM takes to be imported."""
    show = progress or (lambda phase, share: None)
    show("packages", 0.0)
    packages = tuple(_packages())
    show("machine", 0.05)
    features = cpu_features()
    try:
        processor = first_processor()
    except DetectionError:
        processor = {}
    try:
        spec = get_target(NATIVE)
        target, vector_bits = f"{spec.llvm_cpu}, {spec.cores} cores", spec.vector_bits
    except UnknownTargetError as error:
        target, vector_bits = str(error), 0
    places = tuple(_places())
    show("TVM", 0.1)
    tvm, broken = _tried("tvm")
    health = Health(
        tinsmith=tinsmith_version(),
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}".strip(),
        tvm=tvm,
        cpu=processor.get("model name", platform.machine()),
        target=target,
        vector_bits=vector_bits,
        features=tuple(name for name in _FEATURES if name in features),
        processors=os.cpu_count() or 0,
        usable=len(os.sched_getaffinity(0)),
        quota=_quota(),
        variables={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        packages=packages,
        places=places,
        pitfalls=(),
    )
    pitfalls = (*broken, *_of_packages(packages), *_of_machine(health), *_of_places(places))
    return Health(**{**vars(health), "pitfalls": pitfalls})


def _packages() -> Iterator[Package]:
    """Those that Tinsmith requires, by itself or for an extra, as its own metadata tell."""
    try:
        required = requires("tinsmith") or []
    except PackageNotFoundError:
        required = []
    extras: dict[str, list[str]] = {}
    for line in required:
        name = re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0]
        extra = re.search(r"extra\s*==\s*['\"](\w+)['\"]", line)
        if "python_version" in line and find_spec("tomllib") is not None:
            continue
        extras.setdefault(name, []).append(extra.group(1) if extra else "")
    for name, needed in sorted(extras.items()):
        shown = [extra for extra in needed if extra != "test"]
        if shown:
            yield Package(
                name, _version(name), tuple(filter(None, shown)) if "" not in shown else ()
            )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _tried(module: str) -> tuple[str, tuple[Pitfall, ...]]:
    """The version that a package tells when it is imported, or what is wrong with it."""
    code = f"import {module}; print({module}.__version__)"
    try:
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=_IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        problem = f"importing {module} takes more than {_IMPORT_SECONDS} s"
        return "", (Pitfall(problem, "look at the load of the machine and its disk", True),)
    if ran.returncode == 0:
        return ran.stdout.strip(), ()
    told = ran.stderr.strip().splitlines()[-1:] or [describe_exit(ran.returncode)]
    remedy = "install it anew: pip install --force-reinstall tinsmith"
    return "", (Pitfall(f"{module} cannot be imported: {told[0]}", remedy, True),)


def _quota() -> float | None:
    """Processors that a control group grants on average; None without a limit."""
    try:
        granted, period = (_CGROUP / "cpu.max").read_text().split()
        return None if granted == "max" else int(granted) / int(period)
    except (OSError, ValueError):
        return None


def _places() -> Iterator[Place]:
    yield _place("measurements and tuning records", cache_folder())
    try:
        yield _place("what the linker keeps", tool_cache())
    except OSError as error:
        yield Place("what the linker keeps", str(error.filename or error), False, 0)
    yield _place("temporary files", Path(tempfile.gettempdir()))


def _place(purpose: str, path: Path) -> Place:
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    try:
        free = shutil.disk_usage(there).free
    except OSError:
        free = 0
    return Place(purpose, str(path), writable, free)


def _of_packages(packages: tuple[Package, ...]) -> Iterator[Pitfall]:
    for package in packages:
        if package.version is None and not package.extras:
            yield Pitfall(
                f"{package.name} is not installed", f"pip install {package.name}", fatal=True
            )
    ffi = _version("apache-tvm-ffi")
    if ffi is not None and not ffi.startswith("0.1.14"):
        yield Pitfall(
            f"apache-tvm-ffi {ffi} ends the process where a graph is written as JSON",
            "pip install 'apache-tvm-ffi>=0.1.14.post0,<0.1.15'",
            fatal=ffi.startswith("0.1.15"),
        )
    for wanted, other in _RIVALS:
        if _version(wanted) is not None and _version(other) is not None:
            yield Pitfall(
                f"{wanted} and {other} are both installed and overwrite each other",
                f"pip uninstall {wanted} {other}; pip install {wanted}",
            )
    missing = [package.name for package in packages if package.name in _PEERS
               and package.version is None]  # fmt: skip
    if missing:
        yield Pitfall(
            f"{' and '.join(missing)} not installed: `verify` and `bench` do without",
            "pip install 'tinsmith[verify,bench]'",
        )


def _of_machine(health: Health) -> Iterator[Pitfall]:
    if not health.vector_bits:
        yield Pitfall(
            f"this machine is no target: {health.target}",
            "name one with --target, see `tinsmith targets`",
        )
    if "avx2" in health.features and not {"avx_vnni", "avx512_vnni"} & {*health.features}:
        yield Pitfall(
            "the CPU has no VNNI: int8 is as exact as elsewhere and gains less speed",
            "layers that are slower in integers stay in float32 by themselves",
        )
    if health.quota is not None and health.quota < health.usable:
        yield Pitfall(
            f"the container may use {health.quota:g} processors' time on {health.usable} "
            "processors: more threads than that wait for each other",
            f"give --threads {max(1, int(health.quota))}, and `threads` in Python",
        )
    load = os.getloadavg()[0]
    if load > health.usable * 0.75:
        yield Pitfall(
            f"the machine is busy (load {load:.1f} on {health.usable} processors)",
            "measure and tune when it is idle",
        )
    try:
        governor = _GOVERNOR.read_text().strip()
    except OSError:
        governor = ""
    if governor == "powersave":
        yield Pitfall(
            "the processors save power (governor powersave): figures vary",
            "cpupower frequency-set --governor performance, while measuring",
        )


def _of_places(places: tuple[Place, ...]) -> Iterator[Pitfall]:
    for place in places:
        if not place.writable:
            yield Pitfall(
                f"{place.path} cannot be written ({place.purpose})",
                "set XDG_CACHE_HOME, or TMPDIR, to a folder that can",
            )
        elif 0 < place.free_bytes < _LEAST_FREE_BYTES:
            yield Pitfall(
                f"{place.path}: {place.free_bytes / 2**30:.1f} GiB left on its disk "
                f"({place.purpose})",
                "make room: models and the linker's libraries take some",
            )
    temporary = Path(places[-1].path)
    if temporary.exists() and os.statvfs(temporary).f_flag & os.ST_NOEXEC:
        yield Pitfall(
            f"{temporary} is mounted so that nothing in it can be run",
            "set TMPDIR to a folder elsewhere",
        )
