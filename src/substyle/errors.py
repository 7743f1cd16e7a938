"""Base class of the errors raised by substyle, and the errors shared by all packages."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection
from itertools import islice
from typing import Any

# credentials in an address, or a mistyped one: all that precedes an @, and a query
_CREDENTIALS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]+://|\b(?:s3|gs|az|file|https?):/*)[^\s'\"]*(?P<at>@|%40)", re.IGNORECASE
)
_QUERY = re.compile(r"(?P<address>[A-Za-z][A-Za-z0-9+.-]+://[^\s'\"?]*\?)[^\s'\"]+")


def redacted(text: str) -> str:
    """Replace credentials in addresses."""
    return _QUERY.sub(r"\g<address>…", _CREDENTIALS.sub(r"\g<scheme>…\g<at>", text))


def abbreviated(names: Collection[str], most: int = 5, total: int = 0) -> str:
    """Join names for a message; after ``most``, "and N more".

    Args:
        total: number of all names, if ``names`` are some of them.
    """
    more = max(total, len(names)) - min(most, len(names))
    return ", ".join(islice(names, most)) + (f" and {more:,} more" if more else "")


class SubstyleError(Exception):
    """Base class of errors raised by substyle. The command line prints the message without a traceback (exit code 1).

    Messages do not show credentials of addresses.

    Attributes:
        field: the field, flag or argument at fault, or None.
    """

    exit_code = 1
    field: str | None = None

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(each) if isinstance(each, str) else each for each in args))


class ConfigError(SubstyleError):
    """A field, flag or argument has a value that is not allowed (exit code 2).

    Args:
        field: path of the field in the study file or name of the argument, such as ``probes.batch``.
        given: the invalid value.
        allowed: description of the allowed values.
    """

    exit_code = 2
    field: str

    def __init__(self, field: str, given: object, allowed: str) -> None:
        super().__init__(f"{field}: got {given!r}; allowed: {allowed}")
        self.field = field
        self.given = given
        self.allowed = allowed

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, object, str]]:
        return type(self), (self.field, self.given, self.allowed)  # pickled between processes


class MissingError(ConfigError):
    """A required field, flag or argument is missing (exit code 2).

    Args:
        field: see `ConfigError`.
        hint: what to set, and where.
    """

    def __init__(self, field: str, hint: str) -> None:
        super().__init__(field, None, hint)
        self.args = (redacted(f"{field} is required: {hint}"),)

    def __reduce__(self) -> tuple[type[MissingError], tuple[str, str]]:  # type: ignore[override]
        return type(self), (self.field, self.allowed)


def optional(module: str, extra: str) -> Any:  # noqa: ANN401 - a module
    """Import a module of an extra. Raises MissingError, with what to install, if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        what = module.partition(".")[0]
        raise MissingError(what, f"install it with pip install 'substyle[{extra}]'") from None


class ImageError(SubstyleError):
    """An image cannot be decoded; it is quarantined and the run continues."""
