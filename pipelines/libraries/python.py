"""`python:<module>:<function>`: a function ``(image_SSC, **parameters)`` of an importable module, also of this folder.

It maps (S, S, 3) uint8 to the same. One that takes ``rng`` gets a ``numpy.random.Generator``; the generators of Python,
NumPy and torch are seeded, too.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.errors import ConfigError
from substyle.pipelines.libraries.library import Applied, Library
from substyle.pipelines.plugins import ALLOW, code_allowed, current_folder, imported_function

_ALLOWED = "python:<module>:<function>, such as python:my_package.effects:sepia"


class Python(Library):
    """Runs code of the user's, which needs ``--allow-plugins``."""

    prefix, lists_are_choices = "python", True

    def names(self) -> Mapping[str, Any]:
        """None: functions cannot be listed."""
        return {}

    def searchable(self) -> bool:
        """It cannot be searched."""
        return False

    def arguments(self, place: str, name: str, given: Mapping[str, Any], folder: Path, file: object) -> dict[str, Any]:
        """Arguments of a function that can be imported."""
        del folder
        if file is not None:
            raise ConfigError(f"{place}.file", file, "nothing; only albumentations:pipeline takes a file")
        _function(place, name)
        return dict(given)

    def parameters(self, name: str) -> dict[str, str]:
        """Parameters but the picture and ``rng``."""
        found = list(inspect.signature(_function(self.prefix, name)).parameters.values())[1:]
        if any(each.kind is each.VAR_KEYWORD for each in found):
            return {"**": ""}
        return {e.name: "" if e.default is e.empty else str(e.default) for e in found if e.name != "rng"}

    def make(self, name: str, arguments: Mapping[str, Any]) -> Applied:
        """Bind the arguments."""
        function = _function(self.prefix, name)
        takes_rng = "rng" in inspect.signature(function).parameters
        inspect.signature(function).bind(None, **arguments, **({"rng": None} if takes_rng else {}))

        made = functools.partial(function, **arguments), takes_rng
        return lambda image_SSC, seed: self.apply(made, image_SSC, seed)

    def apply(self, made: Any, image_SSC: NDArray[np.uint8], seed: int) -> Any:  # noqa: ANN401
        """Call a function, which may import from the current folder."""
        function, takes_rng = made
        with current_folder():
            return function(image_SSC, **({"rng": np.random.default_rng(seed)} if takes_rng else {}))

    def versions(self, name: str) -> tuple[tuple[str, str], ...]:
        """Of the distribution that has the module, if it is installed."""
        found = metadata.packages_distributions().get(name.partition(":")[0].partition(".")[0], [])
        return tuple((each, metadata.version(each)) for each in sorted(set(found)))


def _function(place: str, name: str) -> Callable[..., Any]:
    """Import a function. Raises ConfigError if it is absent, or may not be run."""
    if not code_allowed():
        allowed = f"code that you trust, since only a file names it: pass --allow-plugins, or set {ALLOW}=1"
        raise ConfigError(f"{place}.of", f"python:{name}", allowed)
    return imported_function(f"{place}.of", f"python:{name}", name, _ALLOWED)


LIBRARY = Python()
