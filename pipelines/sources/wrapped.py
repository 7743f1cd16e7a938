"""Sources whose records differ from those of another source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import overload

from substyle.pipelines.sources.base import ImageRecord, Source, Understood


class Changed:
    """A source with other records."""

    def __init__(self, source: Source, change: Callable[[ImageRecord], ImageRecord]) -> None:
        self.source = source
        self.records: Sequence[ImageRecord] = _ChangedRecords(source.records, change)

    @property
    def root(self) -> str:
        """The root of the wrapped source."""
        return self.source.root

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names indexed by label."""
        return self.source.class_names

    @property
    def understood(self) -> Understood:
        """How the source was interpreted."""
        return self.source.understood

    @property
    def options(self) -> Mapping[str, str]:
        """The options that reopen the wrapped source."""
        return self.source.options


class Named(Changed):
    """A source whose keys are ``<name>/<key>``, so that several sources share one store.

    Args:
        source: the wrapped source.
        name: prefix of the keys, without the slash.
    """

    def __init__(self, source: Source, name: str) -> None:
        super().__init__(source, partial(_renamed, f"{name}/"))
        self.name = name


def _renamed(prefix: str, record: ImageRecord) -> ImageRecord:
    return replace(record, key=prefix + record.key)


class _ChangedRecords(Sequence[ImageRecord]):
    def __init__(self, records: Sequence[ImageRecord], change: Callable[[ImageRecord], ImageRecord]) -> None:
        self._records, self._change = records, change

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        if isinstance(index, slice):
            return [self._change(record) for record in self._records[index]]
        return self._change(self._records[index])

    def __iter__(self) -> Iterator[ImageRecord]:
        return map(self._change, self._records)

    def __eq__(self, other: object) -> bool:
        """Compare records, but not image bytes."""
        return list(self) == list(other) if isinstance(other, _ChangedRecords) else NotImplemented

    __hash__ = None  # type: ignore[assignment]
