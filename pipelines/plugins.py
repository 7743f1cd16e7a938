"""Run plug-ins: Python files and packages, each imported as ``substyle_plugins.<digest of its path>``."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from substyle.errors import ConfigError, SubstyleError
from substyle.files import file_hash

ALLOW = "SUBSTYLE_ALLOW_PLUGINS"  # environment variable; 1 is --allow-plugins
PACKAGE = "substyle"
_PLUGINS = "substyle_plugins"


def code_allowed() -> bool:
    """Whether code that a file names, such as a study or a probe, may be run."""
    return os.environ.get(ALLOW) == "1"


def is_plugin(path: Path) -> bool:
    """Whether a path is that of a Python file, or of a folder with an ``__init__.py``."""
    return (path / "__init__.py").is_file() or (path.is_file() and path.suffix == ".py")


def run_file(path: Path) -> ModuleType:
    """Run a plug-in, a Python file or a package, and return its module.

    The modules of a package import each other relatively, so that packages with modules of the same names do not meet.

    Raises:
        ConfigError: it cannot be read or fails, or imports a file that lies beside it.
    """
    name = f"{_PLUGINS}.{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    file = path / "__init__.py" if path.is_dir() else path
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(_PLUGINS, ModuleType(_PLUGINS))
    _keep_no_bytecode()
    _forget(name)
    sys.modules[name] = module  # for dataclasses, pickle and relative imports
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        _forget(name)
        if isinstance(error, SubstyleError) or not isinstance(error, Exception):
            raise
        allowed = f"a file that runs ({failed_line(error) or f'{type(error).__name__}: {error}'})"
        beside = file.parent / str(getattr(error, "name", "")).partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and (beside.is_dir() or beside.with_suffix(".py").is_file()):
            allowed = f"a folder with an __init__.py that imports its modules by from . import {error.name}"
        raise ConfigError("plugin", str(path), allowed) from error
    return module


def _keep_no_bytecode() -> None:
    """Write no bytecode from now on: it would be run in place of a file that is edited within a second."""
    sys.dont_write_bytecode = True


def _forget(name: str) -> None:
    """Remove a plug-in and its modules from those that are imported."""
    for module in [module for module in sys.modules if f"{module}.".startswith(f"{name}.")]:
        del sys.modules[module]


def failed_line(error: BaseException) -> str:
    """Format as ``file:line: exception`` the innermost line of a plug-in that an exception went through; "" if none."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if str(frame.f_globals.get("__name__")).startswith(f"{_PLUGINS}."):
            return f"{frame.f_code.co_filename}:{line}: {type(error).__name__}: {error}"
    return ""


def in_package(part: object) -> bool:
    """Whether a function or class, and what a partial holds, is defined by this package; True for None."""
    if isinstance(part, functools.partial):
        return all(in_package(each) for each in (part.func, *part.args, *part.keywords.values()) if callable(each))
    return part is None or str(getattr(part, "__module__", "")).partition(".")[0] == PACKAGE


@functools.cache
def files_digest(module: str) -> str:
    """Digest of all files of the plug-in or installed package that a module belongs to, as they are when first asked.

    16 hex digits. Code without a file, as of a notebook, has another digest in every process.
    """
    top = ".".join(module.split(".")[: 2 if module.startswith(f"{_PLUGINS}.") else 1])
    package = sys.modules.get(top)
    file = getattr(package, "__file__", None)
    roots = [*map(Path, getattr(package, "__path__", []))] or ([Path(file)] if file else [])
    digest, found = hashlib.sha256(), False
    for root in roots:
        files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
        for path in files:
            if "__pycache__" in path.parts:
                continue
            found = True
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode("utf-8", "surrogateescape"))
            digest.update(file_hash(path).encode())
    return digest.hexdigest()[:16] if found else uuid.uuid4().hex[:16]


@contextmanager
def current_folder() -> Iterator[None]:
    """Import from the current folder, too: last, so that nothing in it replaces an installed module."""
    before = list(sys.path)
    sys.path.append(os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def imported_function(what: str, name: str, rest: str, allowed: str) -> Callable[..., Any]:
    """Import the function ``<module>:<function>`` of a name, also from the current folder.

    Args:
        what: is named, for errors.
        name: the whole name; rest: its part after ``python:``.
        allowed: names that are allowed, for errors.

    Raises:
        ConfigError: the module cannot be imported or has no such function.
    """
    module, _, attribute = rest.partition(":")
    if not module or not attribute.isidentifier():
        raise ConfigError(what, name, allowed)
    _keep_no_bytecode()
    try:
        with current_folder():
            function = getattr(importlib.import_module(module), attribute)
    except SubstyleError:
        raise
    except Exception as error:  # whatever the module raises while it is imported
        raise ConfigError(f"{what} {name}", f"{type(error).__name__}: {error}", allowed) from error
    if not callable(function):
        raise ConfigError(f"{what} {name}", f"{attribute}, which is no function", allowed)
    return function  # type: ignore[no-any-return]
