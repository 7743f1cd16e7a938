"""The one base of every error that substyle raises on purpose."""

from __future__ import annotations


class SubstyleError(Exception):
    """Something went wrong that the message explains; the command line prints it without a traceback (exit code 1).

    Attributes:
        field: the field, flag or argument that is at fault, where it is one.
    """

    exit_code = 1
    field: str | None = None


class ConfigError(SubstyleError):
    """A field, flag or argument holds a value that is not allowed (exit code 2).

    Args:
        field: path of the field in the file or the name of the argument, such as ``probes.batch``.
        given: the value that was given.
        allowed: what is allowed there, in words.
    """

    exit_code = 2
    field: str

    def __init__(self, field: str, given: object, allowed: str) -> None:
        super().__init__(f"{field}: got {given!r}; allowed: {allowed}")
        self.field = field
        self.given = given
        self.allowed = allowed

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, object, str]]:
        return type(self), (self.field, self.given, self.allowed)  # it may come from another process


class MissingError(ConfigError):
    """A field, flag or argument that is required was not given (exit code 2).

    Args:
        field: as of `ConfigError`.
        hint: what to give, and where.
    """

    def __init__(self, field: str, hint: str) -> None:
        super().__init__(field, None, hint)
        self.args = (f"{field} is required: {hint}",)

    def __reduce__(self) -> tuple[type[MissingError], tuple[str, str]]:  # type: ignore[override]
        return type(self), (self.field, self.allowed)


class ImageError(SubstyleError):
    """One image cannot be decoded; it is quarantined and the run goes on."""
