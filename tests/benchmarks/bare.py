"""Run the check of GPU claims as where few packages are installed: ``python bare.py PACKAGES [ARGUMENTS]``.

PACKAGES are top-level modules, separated by commas: to imports and to `find_spec`, others are not installed, in this
process and in those that it starts for the parts.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PACKAGE = "benchmarks.gpu_check"


class Bare:
    """Finds what `PathFinder` finds, if it is allowed."""

    def __init__(self, packages: Iterable[str]) -> None:
        self.allowed = {*packages, *sys.stdlib_module_names, "benchmarks", "substyle"}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top = name.partition(".")[0]
        # `nvidia` is there with the libraries of CUDA; sysconfig's data are named after the machine
        there = (top in self.allowed and name != "nvidia.dali") or top.startswith("_sysconfigdata")
        return PathFinder.find_spec(name, path, target) if there else None

    def find_distributions(self, context: metadata.DistributionFinder.Context) -> Iterable[metadata.Distribution]:
        for found in PathFinder.find_distributions(context):
            tops = {file.parts[0].removesuffix(".py") for file in found.files or ()}
            if self.allowed & tops and not found.name.startswith("nvidia-dali"):
                yield found


def main(packages: str, *arguments: str) -> int:
    sys.meta_path[sys.meta_path.index(PathFinder)] = Bare(packages.split(","))
    if arguments[:2] == ("-m", f"{PACKAGE}.part"):
        importlib.import_module(f"{PACKAGE}.part").main(arguments[2:])
        return 0
    check = importlib.import_module(f"{PACKAGE}.__main__")
    command = check.command

    def bare(part: str, seconds: float, *, fake: bool) -> list[str]:
        python, *rest = command(part, seconds, fake=fake)
        return [python, __file__, packages, *rest]

    check.command = bare
    return int(check.main(arguments))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])
    sys.exit(main(*sys.argv[1:]))
