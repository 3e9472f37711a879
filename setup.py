"""The folders of the repository as one installed package; everything else is in setup.cfg."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOMS = ("compiler", "passes", "targets", "tuning_logs")
FOLDERS = find_packages(include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")])
# Of Markdown, to another file of the repository: its text and that file.
LOCAL_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|mailto:|#)([^)\s]+)\)")


def for_an_index(readme: str) -> str:
    """The README as a package index shows it, where no other file lies beside it.

    Links to files become their names, as which they are found in the source archive.
    """

    def told(link: re.Match[str]) -> str:
        text, file = link.groups()
        return f"`{file}`" if file.startswith(text) else f"{text} (`{file}`)"

    return LOCAL_LINK.sub(told, readme)


setup(
    packages=["tinsmith", *(f"tinsmith.{folder}" for folder in FOLDERS)],
    package_dir={"tinsmith": "tinsmith", **{f"tinsmith.{room}": room for room in ROOMS}},
    long_description=for_an_index(Path(__file__).with_name("README.md").read_text("utf-8")),
    long_description_content_type="text/markdown",
)
