"""Finds the transformations: all files of the package's folder, and files of the user's own."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from functools import cache
from pathlib import Path

from substyle.kernels.errors import ConfigError
from substyle.pipelines import transforms
from substyle.pipelines.code import SOURCE, file_source
from substyle.pipelines.transforms import base

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
        ConfigError: there is no such Python file, it cannot be parsed, or it takes a name that is taken.
    """
    load_all()
    file = Path(path).absolute()
    if not file.is_file() or file.suffix != ".py":
        raise ConfigError("plugin", str(path), "a Python file (.py) with transformations")
    _run(file)
    _loaded.append(file)


def _run(file: Path) -> None:
    """Run a file as a module, from its source alone: a compiled file beside it may be that of another text.

    What is digested is the source that is run, though the file be edited later.
    """
    name = f"substyle_plugin_{file.stem}"
    while name in sys.modules:  # plug-ins of the same name in different folders
        name += "_"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # it is a Python file
    module = importlib.util.module_from_spec(spec)
    source = file.read_bytes()
    vars(module)[SOURCE] = file_source(file, source)
    known = set(base.REGISTRY)
    sys.modules[name] = module  # where dataclasses and pickle look for it
    try:
        exec(compile(source, str(file), "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    for added in base.REGISTRY.keys() - known:
        _ = base.REGISTRY[added].code


def loaded() -> tuple[Path, ...]:
    """The files that `load_plugin` has run in this process, in order."""
    return tuple(_loaded)
