"""The folders of the repository as one installed package; everything else is in setup.cfg."""

from setuptools import find_packages, setup

ROOMS = ("compiler", "passes", "targets", "tuning_logs")
FOLDERS = find_packages(include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")])

setup(
    packages=["tinsmith", *(f"tinsmith.{folder}" for folder in FOLDERS)],
    package_dir={"tinsmith": "tinsmith", **{f"tinsmith.{room}": room for room in ROOMS}},
)
