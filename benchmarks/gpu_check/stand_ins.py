"""Stand-ins for libraries that a machine lacks, so that parts which do not need them can be imported all the same.

Probes are checked on tables in memory; their modules import what reads stores and study files besides.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

NAMES = ("pydantic", "pyarrow", "xxhash")
_importing = False


class Missing(ModuleType):
    """A library that is missing, or a part of it. It can be named and called while modules are imported, and raises
    ModuleNotFoundError when it is used later.
    """

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith("__"):
            raise AttributeError(name)
        return self._part(name)

    def __call__(self, *given: object, **named: object) -> Any:  # noqa: ANN401
        return self._part("()")

    def __getitem__(self, key: object) -> Any:  # noqa: ANN401
        return self._part("[]")

    def __iter__(self) -> Iterator[Any]:
        self._part("[]")
        return iter(())  # by items it would not end

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        self._part("")
        return ()

    def _part(self, name: str) -> Missing:
        if not _importing:
            library = self.__name__.partition(".")[0]
            raise ModuleNotFoundError(f"No module named {library!r}", name=library)
        return Missing(f"{self.__name__}.{name}")


def _dataclass(kind: type | None = None, **options: Any) -> Any:  # noqa: ANN401
    """pydantic's dataclass without its checks."""
    make: Callable[[type], type] = dataclasses.dataclass(frozen=bool(options.get("frozen")))
    return make if kind is None else make(kind)


@contextmanager
def stand_ins() -> Iterator[None]:
    """Let modules that are imported in the block do without the libraries that are not installed."""
    global _importing  # noqa: PLW0603
    absent = {name: Missing(name) for name in NAMES if importlib.util.find_spec(name) is None}
    if "pydantic" in absent:
        absent["pydantic.dataclasses"] = checked = Missing("pydantic.dataclasses")
        absent["pydantic"].dataclasses, checked.dataclass = checked, _dataclass  # type: ignore[attr-defined]
        absent["pydantic"].ValidationError = ValueError  # type: ignore[attr-defined]
    if "pyarrow" in absent:
        absent |= {f"pyarrow.{part}": Missing(f"pyarrow.{part}") for part in ("compute", "parquet")}
    sys.modules.update(absent)
    _importing = True
    try:
        yield
    finally:
        _importing = False
        for name in absent:
            del sys.modules[name]
