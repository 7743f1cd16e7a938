"""Load transformations of the package, of plug-ins and of suite files; define suites."""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
import re
import sys
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, get_args

from substyle import files
from substyle.errors import ConfigError, SubstyleError
from substyle.pipelines import libraries, limits, transforms
from substyle.pipelines.image_formats import EXTENSIONS
from substyle.pipelines.plugins import is_plugin, run_file
from substyle.pipelines.transforms import base, style

_loaded: list[Path] = []


@cache
def load_all() -> Mapping[str, base.Transformation]:
    """Register every transformation and suite of the package; returns transformations as the package defines them."""
    for module in pkgutil.walk_packages(transforms.__path__, f"{transforms.__name__}."):
        importlib.import_module(module.name)
    return dict(base.REGISTRY)


def suites() -> Mapping[str, tuple[str, ...]]:
    """Suites of the package by name, those of the core first."""
    load_all()
    return base.SUITES


def load_plugin(path: str | Path) -> None:
    """Run a plug-in that registers transformations, or read a suite file (.toml), once per path.

    Raises:
        ConfigError: not a plug-in, one that fails, or a duplicate name.
    """
    load_file(Path(path).absolute())


@cache
def load_file(file: Path) -> tuple[str, ...]:
    """`load_plugin` and `load_suite` of an absolute path; returns the transformations of a suite file."""
    load_all()
    known, names = dict(base.REGISTRY), tuple[str, ...]()
    if file.suffix == ".toml":
        try:
            names = _read_suite(file)
        except ConfigError:  # so that the mended file can be read
            base.REGISTRY.clear()
            base.REGISTRY.update(known)
            raise
    elif is_plugin(file):
        run_file(file)
    else:
        raise ConfigError("plugin", str(file), "an existing Python file (.py), or a folder with an __init__.py")
    _loaded.append(file)
    return names


def loaded() -> tuple[Path, ...]:
    """The plug-ins and suite files loaded in this process, in order."""
    return tuple(_loaded)


# suites that need other libraries, each a suite file
FILES = {path.stem: path for path in sorted(Path(__file__).with_name("suites").glob("*.toml"))}


def suite(name: str) -> tuple[str, ...]:
    """Transformation names of a suite, identity first.

    Args:
        name: suites, paths of suite files (`load_suite`) and transformations, joined by commas. A transformation of
            several of them is taken once. ``@3`` after a suite or a transformation fixes its severity, ``@1..5`` takes
            each of these severities.

    Raises:
        ConfigError: unknown name or severity, or a name given twice.
    """
    load_all()
    parts = [part.strip() for part in name.replace("+", ",").split(",") if part.strip()]  # + in names of before
    if not parts:
        raise ConfigError("suite", name, f"{', '.join(sorted(base.SUITES))}, or names of transformations")
    if twice := next((part for part in parts if parts.count(part) > 1), None):
        raise ConfigError("suite", twice, "each name once")
    return tuple(dict.fromkeys(["identity", *(member for part in parts for member in _members(part))]))


def _members(part: str) -> list[str]:
    """Transformations in one part of a suite's name."""
    if part.endswith(".toml"):
        return list(load_suite(part))
    if libraries.is_reference(part):
        return [libraries.registered(part)]
    whole, at, severity = part.partition("@")
    if whole in FILES:
        base.SUITES[whole] = load_suite(FILES[whole])
    if whole not in base.SUITES and not base.is_known(whole):
        near = get_close_matches(whole, [*base.SUITES, *base.REGISTRY], n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        allowed = f"{', '.join(sorted(base.SUITES))}, a suite file (.toml), or names of transformations{hint}"
        raise ConfigError("suite", part, allowed)
    members = base.SUITES.get(whole, (whole,))
    if not at:
        return list(members)
    found = re.fullmatch(r"([1-9][0-9]?)(?:\.\.([1-9][0-9]?))?", severity)
    if found is None:
        raise ConfigError("suite", part, "@<severity> or @<first>..<last>, such as @3 or @1..5")
    levels = range(int(found[1]), int(found[2] or found[1]) + 1)
    if not levels:
        raise ConfigError("suite", part, "a range of severities that ascends")
    return [base.get(f"{name}@{level}").name for name in members if name != "identity" for level in levels]


def load_suite(path: str | Path) -> tuple[str, ...]:
    """Read a suite from a TOML file and register the transformations that it defines; once per path.

    ``transformations`` lists names, or tables with ``name`` and

    - ``role``, ``kind``: override those of the transformation;
    - ``of = "photographs"``: a real transformation, which is not computed: files of the source show it. Its role is
      ``train`` and its kind ``other`` unless given;
    - ``of``: name of an existing transformation of which this is a version, with ``parameters``: a list of equally
      likely values or ``{ uniform = [low, high] }`` by name; or ``severities``: a list of values, one per severity;
      or, of a style of the network ``arbitrary``, ``picture``: the file to take the style from;
    - ``pictures``, in place of ``name`` and ``picture``: a folder, each picture of which makes a style
      ``style_<file name>``.

    With ``of`` a transformation of another library (:mod:`substyle.pipelines.libraries`), such as
    ``albumentations:RandomRain``, ``parameters`` are handed to the library as they are, but for
    ``{ uniform = [low, high] }`` and ``{ one_of = [...] }``, which are drawn for each photograph. ``file`` is that of
    ``albumentations:pipeline``; ``generator`` names what makes a style, by default ``of``.

    Files and folders are below that of the suite file, and not reached through links.

    Raises:
        ConfigError: the file, or a picture that it names, cannot be read or has an invalid field.
    """
    return load_file(Path(path).absolute())


def _read_suite(file: Path) -> tuple[str, ...]:
    where = f"suite {file.name}"
    try:
        rows = tomllib.loads(limits.read_text(file)).get("transformations")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(where, str(file), f"a readable TOML file ({error})") from error
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{where}: transformations", rows, "a list of names or tables")
    names = []
    for number, row in enumerate(rows):
        given = {"name": row} if isinstance(row, str) else row
        place = f"{where}: transformations[{number}]"
        if isinstance(given, dict) and "coarse" in given and "kind" not in given:
            print(f"{place}: coarse is called kind now", file=sys.stderr)
            given = {"kind" if key == "coarse" else key: value for key, value in given.items()}
        unknown = set(given) - _FIELDS if isinstance(given, dict) else {"?"}
        if unknown or not isinstance(given.get("pictures" if "pictures" in given else "name"), str):
            raise ConfigError(place, row, f"a name, or a table with {', '.join(sorted(_FIELDS))}")
        rows_of = _of_pictures(place, given, file.parent) if "pictures" in given else [given]
        names += [_defined(place, each, file.parent) for each in rows_of]
    return tuple(names)


_FIELDS = {"name", "of", "role", "kind", "parameters", "severities", "picture", "pictures", "file", "generator"}
MOST_PICTURES = 1000  # in a folder; the network holds 1.5 MB for each, and compiles for half a second


def _of_pictures(place: str, given: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """The rows that stand for a row with a folder of pictures, sorted by file name."""
    if both := sorted({"name", "picture"} & set(given)):
        raise ConfigError(place, given, f"pictures without {' and '.join(both)}")
    where = given["pictures"].removesuffix("/")
    try:
        found = sorted(
            path
            for path in files.inside(folder, where).iterdir()
            if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
        )
    except (OSError, SubstyleError) as error:
        allowed = f"a folder below that of the suite file ({error})"
        raise ConfigError(f"{place}.pictures", given["pictures"], allowed) from error
    if not 1 <= len(found) <= MOST_PICTURES:
        allowed = f"a folder with 1 to {MOST_PICTURES} pictures ({', '.join(sorted(EXTENSIONS))}), not {len(found)}"
        raise ConfigError(f"{place}.pictures", given["pictures"], allowed)
    names: dict[str, str] = {}
    for path in found:
        name = "style_" + re.sub("[^A-Za-z0-9_.-]", "_", unicodedata.normalize("NFC", path.stem))
        taken = base.is_known(name) and base.get(name).picture is None
        if other := names.get(name) or (taken and "a transformation"):
            allowed = f"a file name that makes another name than {name}, as {other} does"
            raise ConfigError(f"{place}.pictures", f"{where}/{path.name}", allowed)
        names[name] = path.name
        shared = {key: value for key, value in given.items() if key != "pictures"}
        yield {**shared, "name": name, "picture": f"{where}/{path.name}"}


def _picture(place: str, given: dict[str, Any], folder: Path) -> base.StylePicture:
    """The picture of a row, read."""
    name, of = given["picture"], given.get("of")
    if of is None or base.get(str(of)).network != style.ARBITRARY:
        known = [each.name for each in load_all().values() if each.network == style.ARBITRARY]
        raise ConfigError(f"{place}.of", of, f"with a picture: {', '.join(known)}")
    if not isinstance(name, str):
        raise ConfigError(f"{place}.picture", name, "a file name")
    try:
        return style.read_picture(folder, name)
    except (OSError, ValueError, SubstyleError) as error:
        allowed = f"a picture below the folder of the suite file ({error})"
        raise ConfigError(f"{place}.picture", name, allowed) from error


def _defined(place: str, given: dict[str, Any], folder: Path) -> str:
    """Register the transformation of one row of a suite file in a folder; returns its name."""
    name, of = str(given["name"]), str(given.get("of", given["name"]))
    if given.get("role", "train") not in get_args(base.Role):
        raise ConfigError(f"{place}.role", given["role"], ", ".join(get_args(base.Role)))
    if "kind" in given and given["kind"] not in base.KINDS:
        raise ConfigError(f"{place}.kind", given["kind"], ", ".join(base.KINDS))
    if libraries.is_reference(of):
        return _added(libraries.transformation(place, {**given, "of": of, "name": name.replace(":", ".")}, folder))
    if only := sorted({"file", "generator"} & set(given)):
        raise ConfigError(f"{place}.{only[0]}", given[only[0]], f"nothing; {of} is no transformation of a library")
    own = {"picture": _picture(place, given, folder), "operation": name} if "picture" in given else {}
    real = given.get("of") == base.PHOTOGRAPHS
    made = base.Transformation(name, base.OTHER, "train", "photographs", subtle=True) if real else base.get(of)
    changes: dict[str, Any] = {field: given[field] for field in ("role", "kind") if field in given} | own
    drawn = {field: given.get(field, {}) for field in ("parameters", "severities")}
    known = {parameter.name: parameter for parameter in made.parameters}
    for field, values in drawn.items():
        if not isinstance(values, dict) or not set(values) <= set(known):
            raise ConfigError(f"{place}.{field}", values, f"a table of {', '.join(known) or 'nothing'}")
        for parameter, value in values.items():
            known[parameter] = _parameter(
                f"{place}.{field}.{parameter}", known[parameter], value, field == "severities"
            )
    if (drawn["parameters"] or drawn["severities"]) and "of" not in given:
        raise ConfigError(place, name, "another name, and of = the transformation with these parameters")
    changed = replace(made, name=name, parameters=tuple(known.values()), **changes)
    if of == name and not own and not real:
        if changes:
            base.REGISTRY[name] = changed
        return name
    return _added(changed)


def _added(made: base.Transformation) -> str:
    """Register a transformation, unless another suite file has defined the same; returns its name."""
    if not _equal(base.REGISTRY.get(made.name), made):
        base.register(made)
    return made.name


def _equal(known: base.Transformation | None, made: base.Transformation) -> bool:
    """Whether two transformations are the same, also in what makes their pixels, which `==` does not compare."""
    functions = [(each.function, each.prepare, each.on_gpu) for each in (known, made) if each is not None]
    return known == made and functions[0] == functions[-1]


def _parameter(place: str, known: base.Parameter, value: Any, severity: bool) -> base.Parameter:  # noqa: ANN401
    """A parameter of a suite file."""
    if isinstance(value, dict) and not severity:
        low_high = value.get("uniform")
        if (
            set(value) == {"uniform"}
            and isinstance(low_high, list)
            and len(low_high) == 2
            and all(map(_number, low_high))
        ):
            signed, count = (known.signed, known.count) if isinstance(known, base.Uniform) else (False, 1)
            low, high = map(float, low_high)
            _require_within(place, known, [low, high])
            if _whole(known):
                raise ConfigError(place, value, "a list of values; those drawn from a range would not be whole")
            return base.Uniform(known.name, low, high, known.unit, signed, count, known.within)
    elif isinstance(value, list) and value:
        values = tuple(tuple(each) if isinstance(each, list) else each for each in value)
        like = known.values[0] if isinstance(known, base.Choice) else 0.0
        width = len(like) if isinstance(like, tuple) else 0
        fits = (_numbers(v, width) if width else _number(v) for v in values)
        if (not isinstance(known, base.Uniform) or known.count == 1) and all(fits):
            _require_within(
                place, known, [n for each in values for n in (each if isinstance(each, tuple) else (each,))]
            )
            return base.Choice(known.name, values, known.unit, severity, known.within)
    allowed = "a list of values" + ("" if severity else " or { uniform = [low, high] }")
    raise ConfigError(place, value, f"{allowed}, numbers like {known.describe()}")


def _whole(known: base.Parameter) -> bool:
    return known.within is not None and all(isinstance(bound, int) for bound in known.within)


def _require_within(place: str, known: base.Parameter, values: Sequence[float]) -> None:
    """Raise ConfigError unless the transformation can be made with these values."""
    if known.within is None:
        return
    low, high = known.within
    whole = _whole(known)
    for value in values:
        if not low <= value <= high or (whole and value != int(value)):
            allowed = f"{'whole ' * whole}numbers from {low} to {high}" if low < high else f"only {low}"
            raise ConfigError(place, value, f"{allowed}{f' {known.unit}' * bool(known.unit)}")


def _numbers(value: object, width: int) -> bool:
    return isinstance(value, tuple) and len(value) == width and all(map(_number, value))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _meaning(definition: Mapping[str, Any]) -> str:
    return json.dumps([definition.get(key) for key in ("kind", "role", "parameters")], sort_keys=True)


def suite_name(definitions: Sequence[Mapping[str, Any]]) -> str:
    """The name of the suite with exactly these transformations as the package defines them, else their names.

    Args:
        definitions: as of `Transformation.describe`.
    """
    made, packaged = {str(each["name"]): each for each in definitions}, load_all()
    for name, members in base.SUITES.items():
        if set(members) == set(made):
            own = (packaged[member].describe() for member in members)
            if all(_meaning(made[each["name"]]) == _meaning(each) for each in own):
                return name
    return ",".join(made)
