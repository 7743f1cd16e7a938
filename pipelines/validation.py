"""Configuration as pydantic dataclasses whose errors name the field by its path in the study file."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic.dataclasses
from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema

from substyle.errors import ConfigError, MissingError
from substyle.pipelines.storage import is_address, is_remote

T = TypeVar("T")
_DEPTH, _VALUES, _TEXT = 16, 10_000, 4_096  # more than any study needs; 4,096 is also the longest path on Linux
# by type of pydantic error, where its own message refers to Python
_ALLOWED = {
    "missing": "a value",
    "dataclass_type": "a table",
    "dict_type": "a table",
    "tuple_type": "a list",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
    "too_short": "a list of at least {min_length}",
}


def brief(error: Exception) -> str:
    """Return the text of an error in one line; of pydantic's, the first problem without its value."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _different(values: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(values)) < len(values):
        raise ValueError("different values")
    return values


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError("a power of two")
    return value


def _path(value: object) -> Path:
    if isinstance(value, str | Path) and "\x00" not in str(value):
        if is_address(value):  # would become a folder
            raise ValueError("a local path")
        return Path(value)
    raise ValueError("a path")


def _path_or_address(value: object) -> Path | str:
    return value if isinstance(value, str) and is_remote(value) else _path(value)


Distinct = Annotated[
    tuple[T, ...],
    Field(min_length=1, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_different),
]
PowerOfTwo = AfterValidator(_power_of_two)  # 0 passes as well
LocalPath = Annotated[Path, PlainValidator(_path), WithJsonSchema({"type": "string"})]
PathOrAddress = Annotated[Path | str, PlainValidator(_path_or_address), WithJsonSchema({"type": "string"})]


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def validated(path: str = "", *, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """Class decorator: a frozen pydantic dataclass that raises ConfigError.

    Docstrings of attributes become descriptions in the JSON Schema.

    Args:
        path: path of the table in a study file, such as ``probes``; prefix of field names in errors.
        kw_only: as of `dataclasses.dataclass`, for fields that a whole study and its tables inherit.
    """

    def decorate(kind: type[T]) -> type[T]:
        config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
        made: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=kw_only, config=config)(kind)
        validate = made.__init__

        @wraps(validate)
        def init(self: T, *args: object, **values: object) -> None:
            try:
                validate(self, *args, **values)
            except ValidationError as error:
                raise _config_error(made, path, error) from error

        made.__init__ = init
        return made  # type: ignore[no-any-return]

    return decorate


def _config_error(kind: type, path: str, invalid: ValidationError) -> ConfigError:
    """Convert the first error; unknown fields take precedence: a typo also makes the intended field missing."""
    errors = invalid.errors(include_url=False)
    error = min(errors, key=lambda each: each["type"] != "unexpected_keyword_argument")
    names = [field.name for field in dataclasses.fields(kind) if not field.kw_only]
    (first, *inner), shared = error["loc"], bool(path)
    first = names[first] if isinstance(first, int) and first < len(names) else first  # an argument by position
    for part in (first, *inner):
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    allowed = _ALLOWED.get(error["type"], error["msg"]).format(**error.get("ctx", {}))
    allowed = allowed.removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] == "unexpected_keyword_argument":
        table = _table(kind, (first, *inner[:-1]) if inner else ())
        known = [field.name for field in dataclasses.fields(table) if not (shared or inner) or not field.kw_only]
        near = get_close_matches(str(error["loc"][-1]), known, n=1)
        allowed = f"the fields {', '.join(known)}{f' (did you mean {near[0]}?)' if near else ''}"
    if error["type"] == "missing":
        return MissingError(path, "it has no default")
    return ConfigError(path, error["input"], allowed)


def _table(kind: Any, way: tuple[int | str, ...]) -> Any:  # noqa: ANN401
    """The nested dataclass at the location of an error."""
    for part in way:
        if isinstance(part, str):
            kind = typing.get_type_hints(kind)[part]
        while not dataclasses.is_dataclass(kind):
            kind = typing.get_args(kind)[0]
    return kind


def require_bounded(data: object) -> None:
    """Raise ConfigError for data too large or too deep for any study, before validation and error messages."""
    todo: list[tuple[str, object, int]] = [("", data, 0)]
    for path, value, depth in todo:  # grows
        where = path[:200] or "the study file"
        if isinstance(value, Mapping):
            todo += [
                (f"{path}.{str(name)[:200]}" if path else str(name)[:200], inner, depth + 1)
                for name, inner in value.items()
            ]
            value = max(map(str, value), key=len, default="")  # noqa: PLW2901 (checks the longest name below)
        elif isinstance(value, list | tuple):
            todo += [(f"{path}[{i}]", inner, depth + 1) for i, inner in enumerate(value)]
        if depth > _DEPTH or len(todo) > _VALUES:
            raise ConfigError(where, "more", f"at most {_VALUES} values, nested at most {_DEPTH} deep")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConfigError(where, f"a number of {value.bit_length()} bits", "64-bit integers")
        if isinstance(value, str) and len(value) > _TEXT:
            raise ConfigError(where, f"{value[:40]}…, {len(value)} characters", f"at most {_TEXT} characters")
