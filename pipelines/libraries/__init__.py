"""Transformations of other libraries, by name: ``albumentations:RandomRain``, ``torchvision:RandomPerspective``.

A library is a module of this folder with a subclass of :class:`~substyle.pipelines.libraries.library.Library`. It only
says which transformations there are and how one is applied to one photograph: `processes` seeds it from the
photograph's key, in processes of its own, so that batch, order and number of processes do not change a pixel.

Other packages import `library`, `processes`.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from substyle.errors import ConfigError
from substyle.pipelines.libraries.library import Library
from substyle.pipelines.transforms import base

_NAMES = ("albumentations", "gmic", "kornia", "opencv", "python", "torchvision")
_MODULES = {name: f"{__name__}.{name}" for name in _NAMES}


@cache
def library(prefix: str) -> Library:
    """Return a library by the prefix of its transformations. Raises ConfigError if there is none."""
    if prefix not in _MODULES:
        raise ConfigError("library", prefix, ", ".join(_MODULES))
    made: Library = importlib.import_module(_MODULES[prefix]).LIBRARY
    return made


def installed() -> dict[str, Library]:
    """The libraries that are installed and can be searched, by prefix."""
    return {name: library(name) for name in _MODULES if library(name).searchable()}


def is_reference(name: str) -> bool:
    """Whether a name is of a library's transformation, such as ``kornia:RandomMotionBlur``."""
    return name.partition(":")[0] in _MODULES and ":" in name


def registered(reference: str) -> str:
    """Register a library's transformation as it is by default; returns its name, with ``.`` in place of ``:``."""
    name = reference.replace(":", ".")
    made = transformation("suite", {"name": name, "of": reference}, Path())
    if base.REGISTRY.get(name) != made:
        base.register(made)
    return name


def _find(name: str) -> None:
    """Register the transformation that `registered` gives this name, such as one that a store has."""
    prefix, _, own = name.partition(".")
    if prefix in _MODULES and own:
        module, _, function = own.rpartition(".")
        registered(f"{prefix}:{module}:{function}" if prefix == "python" else f"{prefix}:{own}")


base.FINDERS.append(_find)


def transformation(place: str, row: Mapping[str, Any], folder: Path) -> base.Transformation:
    """Make the transformation of a row of a suite file whose ``of`` is a reference.

    Args:
        place: of the row, for errors.
        row: ``name``, ``of`` and, optionally, ``kind``, ``role``, ``generator``, ``file``, ``parameters``,
            ``severities``; see :func:`substyle.pipelines.transforms.registry.load_suite`.
        folder: where a ``file`` is.

    Raises:
        ConfigError: the library or the transformation is absent, or a field is invalid.
    """
    name, of = str(row["name"]), str(row["of"])
    if unknown := sorted({"picture", "pictures"} & set(row)):
        raise ConfigError(place, ", ".join(unknown), "a style of this package, for pictures")
    prefix, _, own = of.partition(":")
    source = library(prefix)
    fixed, drawn = dict[str, Any](), dict[str, base.Parameter]()
    for key, value in _table(f"{place}.parameters", row.get("parameters", {})).items():
        where = f"{place}.parameters.{key}"
        if isinstance(value, dict) and set(value) in ({"uniform"}, {"one_of"}):
            drawn[key] = _drawn(where, key, value)
        elif source.lists_are_choices and isinstance(value, list):
            drawn[key] = _choice(where, key, value, severity=False)
        else:
            fixed[key] = _plain(where, value)
    for key, value in _table(f"{place}.severities", row.get("severities", {})).items():
        drawn[key] = _choice(f"{place}.severities.{key}", key, value, severity=True)
        fixed.pop(key, None)
    fixed = source.arguments(place, own, fixed, folder, row.get("file"))
    call = base.LibraryCall(of, json.dumps(fixed, sort_keys=True), source.versions(own))
    _try(place, source, own, fixed, drawn)
    kind, role = row.get("kind", base.OTHER), row.get("role", "train")
    generator = str(row.get("generator", of)) if kind == "style" else ""
    return base.Transformation(
        *(name, kind, role, "library", tuple(drawn.values())),
        generator=generator,
        subtle=True,  # what it does is the user's choice, and often less than a grey level
        library=call,
    )


def _try(place: str, source: Library, own: str, fixed: Mapping[str, Any], drawn: Mapping[str, base.Parameter]) -> None:
    """Raise ConfigError unless the library accepts the arguments, with every drawn parameter at either end."""
    for end in (0, -1):
        ends = {
            key: each.values[end] if isinstance(each, base.Choice) else (each.low, each.high)[end]
            for key, each in drawn.items()
        }
        source.require(place, own, {**fixed, **ends})


def _table(place: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(place, value, "a table")
    return value


def _plain(place: str, value: Any) -> Any:  # noqa: ANN401 - of a TOML file
    """A value that JSON can say."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        allowed = "a finite number, true, false, a string, or a list or table of these"
        raise ConfigError(place, value, allowed) from error
    return value


def _drawn(place: str, name: str, value: Mapping[str, Any]) -> base.Parameter:
    if "one_of" in value:
        return _choice(place, name, value["one_of"], severity=False)
    ends = value["uniform"]
    if not isinstance(ends, list) or len(ends) != 2 or not all(map(_number, ends)):
        raise ConfigError(place, value, "{ uniform = [low, high] }")
    return base.Uniform(name, float(ends[0]), float(ends[1]))


def _choice(place: str, name: str, values: object, *, severity: bool) -> base.Choice:
    allowed = "a list of numbers, or of equally long lists of numbers"
    if not isinstance(values, list) or not values:
        raise ConfigError(place, values, allowed)
    made = tuple(tuple(each) if isinstance(each, list) else each for each in values)
    widths = {len(each) if isinstance(each, tuple) else 0 for each in made}
    numbers = [n for each in made for n in (each if isinstance(each, tuple) else (each,))]
    if len(widths) > 1 or not numbers or not all(map(_number, numbers)):
        raise ConfigError(place, values, allowed)
    return base.Choice(name, made, severity=severity)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
