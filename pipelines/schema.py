"""Plain mappings, as TOML gives them, to typed dataclasses; a bad field is named by its path in the file."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from substyle.kernels.errors import ConfigError
from substyle.pipelines.storage import is_remote

T = TypeVar("T")
_DEPTH, _VALUES, _TEXT = 16, 10_000, 4_096  # more than any study needs; 4,096 is also the longest path of Linux
_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
}


def build(kind: type[T], data: object, path: str = "") -> T:
    """Make a dataclass from a mapping.

    Args:
        kind: the dataclass; its fields are int, float, str, bool, Path, other dataclasses, tuples and dicts of these.
        data: what the file holds.
        path: path of the mapping in the file, for messages.

    Raises:
        ConfigError: not a mapping, an unknown field, a missing one, or a value of another type; the dataclass's own
            checks raise ConfigError too.
    """
    if not path:
        _require_bounded(data)
    if not isinstance(data, Mapping):
        raise ConfigError(path or "the study file", data, "a table")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name not in fields:
            near = get_close_matches(str(name), fields, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(_join(path, str(name)), value, f"no such field{hint}; fields here: {', '.join(fields)}")
        values[name] = _convert(hints[name], value, _join(path, name))
    for name, field in fields.items():
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if missing and name not in values:
            raise ConfigError(_join(path, name), "nothing", "a value: this field has no default")
    return kind(**values)


def _require_bounded(data: object) -> None:
    """Raise ConfigError for what no configuration holds and what could not even be shown in a message."""
    todo: list[tuple[str, object, int]] = [("", data, 0)]
    for path, value, depth in todo:  # grows as it goes
        where = path[:200] or "the study file"
        if depth > _DEPTH or len(todo) > _VALUES:
            raise ConfigError(where, "more", f"at most {_VALUES} values, tables and lists at most {_DEPTH} deep")
        if isinstance(value, Mapping):
            todo += [(_join(path, str(name)[:200]), inner, depth + 1) for name, inner in value.items()]
            value = max(map(str, value), key=len, default="")  # noqa: PLW2901 (the longest name is a text as well)
        elif isinstance(value, list | tuple):
            todo += [(f"{path}[{i}]", inner, depth + 1) for i, inner in enumerate(value)]
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConfigError(where, f"a number of {value.bit_length()} bits", "numbers of 64 bits")
        if isinstance(value, str) and len(value) > _TEXT:
            raise ConfigError(where, f"{value[:40]}…, {len(value)} characters", f"at most {_TEXT} characters")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _convert(hint: Any, value: object, path: str) -> Any:  # noqa: ANN401
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        inner = [a for a in arguments if a is not type(None)]
        address = str in inner and isinstance(value, str) and is_remote(value)  # which is no path
        return value if address else _convert(inner[0], value, path)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(path, value, f"a list, each {_words(arguments[0])}")
        if arguments[-1] is Ellipsis:
            return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
        if len(value) != len(arguments):
            raise ConfigError(path, value, f"a list of {len(arguments)}")
        return tuple(_convert(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(path, value, "a table")
        return {str(k): _convert(arguments[1], v, _join(path, str(k))) for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        # a backbone may be given by its name alone
        if isinstance(value, str) and "name" in {f.name for f in dataclasses.fields(hint)}:
            value = {"name": value}
        return build(hint, value, path)
    return _plain(hint, value, path)


def _plain(hint: Any, value: object, path: str) -> Any:  # noqa: ANN401
    if hint is Path and isinstance(value, str | Path) and "\x00" not in str(value):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is hint:
        return value
    raise ConfigError(path, value, _words(hint))


def _words(hint: Any) -> str:  # noqa: ANN401
    return _WORDS.get(hint, "a table or a name")
