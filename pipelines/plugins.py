"""Run plug-in files. Each has modules of its own, imported from source, all of which its digest covers."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from substyle.kernels.errors import ConfigError, SubstyleError
from substyle.pipelines.code import PACKAGE, SOURCE, installed, sources_of, text_of

ALLOW = "SUBSTYLE_ALLOW_PLUGINS"  # environment variable; 1 is --allow-plugins
_LOCK = threading.RLock()
_LIBRARIES = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib"))


def code_allowed() -> bool:
    """Whether code that a file names, such as a study or a probe, may be run."""
    return os.environ.get(ALLOW) == "1"


def run_file(file: Path) -> ModuleType:
    """Run a plug-in and return its module.

    Modules that it imports from files that are not installed are its own, even if another plug-in has modules of the
    same names. They are compiled from source, never loaded from bytecode. Those that it imports later, while a
    transformation runs, must be known from an import statement, and unchanged.

    Raises:
        ConfigError: the file, or one that it imports, cannot be read or parsed, or fails.
    """
    return _Plugin(file).run()


def failed_line(error: BaseException) -> str:
    """Format as ``file:line: exception`` the innermost line of a plug-in that an exception went through; "" if none."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        own = frame.f_globals.get("__builtins__")
        if isinstance(own, dict) and isinstance(getattr(own.get("__import__"), "__self__", None), _Plugin):
            return f"{frame.f_code.co_filename}:{line}: {type(error).__name__}: {error}"
    return ""


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


class _Plugin(MetaPathFinder):
    """Finds the modules of one plug-in that are not installed, while they are `active`.

    Args:
        file: the plug-in.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.texts: dict[str, str] = {}  # of all sources, by path relative to the plug-in's folder, or by module
        self.modules: dict[str, ModuleType] = {}
        self.path: list[str] | None = None  # sys.path that the plug-in has left; None while it is loaded
        self.depth = 0
        self.builtins = {**vars(builtins), "__import__": self.load}

    def run(self) -> ModuleType:
        """Run the plug-in."""
        name = f"substyle_plugin_{self.file.stem}"
        while name in sys.modules:  # plug-ins of the same name in different folders
            name += "_"
        spec = importlib.util.spec_from_file_location(name, self.file)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        source = self.file.read_bytes()
        self.texts = sources_of(self.file, source)
        code = compile(source, str(self.file), "exec", dont_inherit=True)
        sys.modules[name] = module  # for dataclasses and pickle
        try:
            with self.active():
                self.execute(module, code)
                self.path = list(sys.path)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, Exception) and not isinstance(error, SubstyleError):
                given = failed_line(error) or f"{type(error).__name__}: {error}"
                raise ConfigError("plugin", str(self.file), f"a file that runs ({given})") from error
            raise
        vars(module)[SOURCE] = text_of(self.texts)
        return module

    def execute(self, module: ModuleType, code: Any) -> None:  # noqa: ANN401 - a code object
        """Run the code of a module whose import statements, now and later, see the plug-in's modules."""
        vars(module)["__builtins__"] = self.builtins
        exec(code, vars(module))

    def load(
        self,
        name: str,
        scope: Mapping[str, object] | None = None,
        local: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """``__import__`` of the plug-in's modules."""
        with self.active():
            return builtins.__import__(name, scope, local, fromlist or (), level)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Put the plug-in's modules and ``sys.path`` in place of those of the program and of other plug-ins."""
        with _LOCK:
            self.depth += 1
            if self.depth > 1:
                try:
                    yield
                finally:
                    self.depth -= 1
                return
            hidden, path = _local_modules(), list(sys.path)
            for name in hidden:
                del sys.modules[name]
            sys.modules.update(self.modules)
            sys.path[:] = path if self.path is None else self.path
            sys.meta_path.insert(0, self)
            try:
                yield
            finally:
                sys.meta_path.remove(self)
                sys.path[:] = path
                self.modules = _local_modules()
                for name in self.modules:
                    del sys.modules[name]
                sys.modules.update(hidden)
                self.depth -= 1

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module in a file that is not installed; None for others."""
        found = PathFinder.find_spec(name, path, target)
        if found is None or not isinstance(found.loader, SourceFileLoader) or not _is_local(name, found.origin):
            return None
        return importlib.util.spec_from_file_location(
            name, found.origin, loader=_Source(self, name, str(found.origin)),
            submodule_search_locations=found.submodule_search_locations,
        )  # fmt: skip

    def record(self, name: str, file: Path, source: bytes) -> None:
        """Add a module to the digest. Raises ImportError if the plug-in has been loaded without it."""
        root = self.file.parent
        label = file.relative_to(root).as_posix() if file.is_relative_to(root) else name
        for label, text in sources_of(file, source, root, label).items():  # noqa: B020
            if self.path is not None and self.texts.get(label) != text:
                how = "has changed since" if label in self.texts else "was not imported when"
                raise ImportError(f"{file}: {how} the plug-in {self.file} was loaded")
            self.texts[label] = text


class _Source(SourceFileLoader):
    """Loads a module of a plug-in from its source."""

    def __init__(self, plugin: _Plugin, name: str, path: str) -> None:
        super().__init__(name, path)
        self.plugin = plugin

    def exec_module(self, module: ModuleType) -> None:
        """Compile and run the source, which is recorded."""
        source = Path(self.path).read_bytes()
        self.plugin.record(self.name, Path(self.path).absolute(), source)
        self.plugin.execute(module, compile(source, self.path, "exec", dont_inherit=True))


def _local_modules() -> dict[str, ModuleType]:
    """Modules that were imported from files that are not installed, apart from plug-ins and the main program."""
    return {
        name: module
        for name, module in list(sys.modules.items())
        if _is_local(name, getattr(module, "__file__", None)) and SOURCE not in vars(module)
    }


def _is_local(name: str, file: str | None) -> bool:
    if file is None or not file.endswith(".py") or name.partition(".")[0] in (PACKAGE, "__main__"):
        return False
    return not file.startswith(_LIBRARIES) and not installed(Path(file))
