"""What a library of transformations says of itself."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.errors import ConfigError

Applied = Callable[[NDArray[np.uint8], int], Any]  # (S, S, 3) uint8 and a seed of 32 bits → what should be the same

# arguments by which a transformation would read files, or call functions, that a suite file cannot hold
_FOREIGN = re.compile("path|file|reference|metadata|read_fn|lambd|callable|transforms|transformation_matrix")


class Library(ABC):
    """Transformations of an installed library.

    Attributes:
        prefix: of references.
        module: that is imported.
        distributions: whose versions are part of a definition, the library first; alternatives are separated by ``|``.
        extra: of this package that installs it; empty if none is needed.
        lists_are_choices: a list of a suite file's ``parameters`` holds equally likely values, as for transformations
            of this package, and is no value itself.
    """

    prefix: str
    module: str
    distributions: tuple[str, ...]
    extra = ""
    lists_are_choices = False

    @abstractmethod
    def names(self) -> Mapping[str, Any]:
        """What makes each transformation, by name; the signature of a function says its parameters."""

    @abstractmethod
    def apply(self, made: Any, image_SSC: NDArray[np.uint8], seed: int) -> Any:  # noqa: ANN401
        """Apply what `make` has made. Generators of Python, NumPy and torch have been seeded."""

    def make(self, name: str, arguments: Mapping[str, Any]) -> Applied:
        """Make a transformation. Raises whatever the library raises for arguments that it does not accept."""
        made = self.names()[name](**{key: _tuples(value) for key, value in arguments.items()})
        return lambda image_SSC, seed: self.apply(made, image_SSC, seed)

    def searchable(self) -> bool:
        """Whether it is installed and its transformations can be listed."""
        return importlib.util.find_spec(self.module) is not None

    def imported(self, place: str) -> Any:  # noqa: ANN401 - a module without types
        """Import the library. Raises ConfigError if it is not installed."""
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            how = f", pip install 'substyle[{self.extra}]'" if self.extra else ""
            raise ConfigError(place, f"{self.prefix}: ({error})", f"an installed library{how}") from error

    def arguments(self, place: str, name: str, given: Mapping[str, Any], folder: Path, file: object) -> dict[str, Any]:
        """The arguments that are the same for all photographs, with the library's defaults that this package changes.

        Raises:
            ConfigError: the library has no such transformation, or it takes no file.
        """
        del folder
        self.imported(place)
        if name not in self.names():
            near = get_close_matches(name, self.names(), n=5, cutoff=0.5)
            allowed = ", ".join(near) if near else f"substyle transforms --search {name} lists some"
            raise ConfigError(f"{place}.of", f"{self.prefix}:{name}", f"such as {allowed}")
        if file is not None:
            raise ConfigError(f"{place}.file", file, "nothing; only albumentations:pipeline takes a file")
        always = {"p": 1.0} if "p" in self.parameters(name) else {}
        return {**always, **given}

    def require(self, place: str, name: str, arguments: Mapping[str, Any]) -> None:
        """Raise ConfigError, with the parameters that the library allows, unless it accepts these arguments."""
        allowed = self.parameters(name)
        unknown = sorted(set(arguments) - set(allowed))
        if unknown and "**" not in allowed:
            raise ConfigError(f"{place}.parameters", ", ".join(unknown), shown(allowed) or "no parameters")
        try:
            self.make(name, arguments)
        except Exception as error:  # whatever the library raises
            given = ", ".join(f"{key} = {as_toml(value)}" for key, value in arguments.items()) or "no parameters"
            said = re.sub(r"For further information visit \S+", "", f"{type(error).__name__}: {error}")
            reason = " ".join(said.split())[:500]
            raise ConfigError(f"{place}.parameters", given, f"{shown(allowed)} ({reason})") from error

    def parameters(self, name: str) -> dict[str, str]:
        """Parameters of a transformation and their defaults, as TOML; empty text if one has none, or None."""
        found = {}
        for each in inspect.signature(self.names()[name]).parameters.values():
            if each.kind is each.VAR_KEYWORD:
                found["**"] = ""
            elif each.kind is not each.VAR_POSITIONAL:
                found[each.name] = "" if each.default is each.empty or each.default is None else as_toml(each.default)
        return found

    def versions(self, name: str) -> tuple[tuple[str, str], ...]:
        """Installed distributions and their versions that a definition records."""
        del name
        found = []
        for alternatives in self.distributions:
            for each in alternatives.split("|"):
                try:
                    found.append((each, metadata.version(each)))
                except metadata.PackageNotFoundError:
                    continue
        return tuple(found)


def shown(parameters: Mapping[str, str]) -> str:
    """Parameters and defaults on a line."""
    return ", ".join(f"{name} = {default}" if default else name for name, default in parameters.items() if name != "**")


def as_toml(value: object) -> str:
    """Format a value as in a suite file; what TOML has no value for as JSON, or as Python's text."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(toml_lines(value))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    return json.dumps(value, default=str, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_lines(table: Mapping[Any, Any]) -> list[str]:
    """Format the fields of a table, a line each."""
    return [f"{toml_key(str(name))} = {as_toml(value)}" for name, value in table.items()]


def toml_key(name: str) -> str:
    """Format the name of a field or table, in quotes where it needs them."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else as_toml(name)


def takes_only_values(made: Callable[..., Any]) -> bool:
    """Whether all arguments of a transformation can be written in a suite file, and none makes it open a file."""
    try:
        found = inspect.signature(made).parameters.values()
    except ValueError:
        return False
    # further arguments may be handed to anything, such as a download of weights
    return not any(_FOREIGN.search(each.name) or each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL) for each in found)


@cache
def subclasses(module: str, parents: tuple[type, ...], without: type | None = None) -> dict[str, Callable[..., Any]]:
    """Public classes of a module that are derived from one of the parents and take only values, by name.

    Args:
        without: a class whose subclasses are left out.
    """
    found = importlib.import_module(module)
    return {
        name: made
        for name, made in sorted(vars(found).items())
        if inspect.isclass(made) and issubclass(made, parents) and made not in parents and takes_only_values(made)
        if not re.search("^_|Base|Lambda", name) and not (without and issubclass(made, without))
    }


def _tuples(value: Any) -> Any:  # noqa: ANN401
    """Lists as tuples, which all libraries take."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
