"""The wheel of `tinsmith-runtime`: the part of the repository that runs modules, see ADR 0111.

The package `tinsmith` lies in it as `tinsmith_runtime/packages/tinsmith`, and a `.pth` file puts
`tinsmith_runtime/packages` last on the search path.
"""

from __future__ import annotations

import configparser
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
SEARCHED = "tinsmith_runtime.packages"
# What running a module needs, by folder of the repository; `*` stands for all of its modules.
PARTS = {
    "tinsmith": ("*",),
    "compiler": (
        "__init__", "attended", "errors", "host", "interpolation", "plain_text", "processes",
        "runtime_command", "scratch",
    ),
    "compiler/evaluate": ("__init__", "compare", "float_model", "inputs", "kernels", "verify"),
    "compiler/module": ("*",),
    "compiler/quantization": ("__init__", "noise"),
    "passes": ("__init__", "progress"),
    "targets": ("__init__", "family", "machine_at_hand", "registry", "spec"),
    "targets/arm": ("__init__", "detect", "family", "specs"),
    "targets/x86": ("__init__", "detect", "family", "specs", "tile_permission"),
}  # fmt: skip


def package_of(folder: str) -> str:
    """The name of a folder's package inside the wheel."""
    inside = "" if folder == "tinsmith" else f".{folder.replace('/', '.')}"
    return f"{SEARCHED}.tinsmith{inside}"


FOLDERS = {package_of(folder): folder for folder in PARTS}


class BuildPart(build_py):
    """Takes the modules of `PARTS` alone, and adds the `.pth` file and the licence."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        wanted = PARTS.get(FOLDERS.get(package, ""), ("*",))
        return [found for found in modules if wanted == ("*",) or found[1] in wanted]

    def run(self) -> None:
        super().run()
        Path(self.build_lib).mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "tinsmith_runtime.pth", self.build_lib)
        shutil.copy(HERE.parent / "LICENSE", Path(self.build_lib) / "tinsmith_runtime")


def version() -> str:
    """That of `tinsmith`: the two are built from the same sources."""
    parser = configparser.ConfigParser()
    parser.read(HERE.parent / "setup.cfg")
    return parser["metadata"]["version"]


setup(
    version=version(),
    packages=["tinsmith_runtime", *FOLDERS],
    package_dir={
        "tinsmith_runtime": "tinsmith_runtime",
        **{package: f"../{folder}" for package, folder in FOLDERS.items()},
    },
    package_data={package_of("tinsmith"): ["py.typed"]},
    cmdclass={"build_py": BuildPart},
)
