"""Finds the transformations: all files of the package's folder, and files of the user's own."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from functools import cache
from pathlib import Path

from substyle.kernels.errors import ConfigError
from substyle.pipelines import transforms

_loaded: list[Path] = []


@cache
def load_all() -> None:
    """Register every transformation of the package."""
    for module in pkgutil.iter_modules(transforms.__path__):
        importlib.import_module(f"{transforms.__name__}.{module.name}")


@cache
def load_plugin(path: str | Path) -> None:
    """Run a user's Python file that registers more transformations; once for each path.

    Raises:
        ConfigError: there is no such Python file, or it takes a name that is taken.
    """
    load_all()
    file = Path(path)
    spec = importlib.util.spec_from_file_location(f"substyle_plugin_{file.stem}", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise ConfigError("plugin", str(path), "a Python file (.py) with transformations")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    _loaded.append(file.absolute())


def loaded() -> tuple[Path, ...]:
    """The files that `load_plugin` has run in this process, in order."""
    return tuple(_loaded)
