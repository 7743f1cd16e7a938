"""A source beside others in one store: its keys start with its name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import overload

from substyle.pipelines.places import is_remote
from substyle.pipelines.sources.base import ImageRecord, Source, Understood


class Named:
    """A source whose keys are ``<name>/<key>``.

    Args:
        source: the photographs, with keys of their own.
        name: what their keys start with, without the slash.
    """

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = source, name
        self.records: Sequence[ImageRecord] = _Renamed(source.records, f"{name}/")

    @property
    def root(self) -> str:
        """What the user named."""
        return self.source.root

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, indexed by label."""
        return self.source.class_names

    @property
    def understood(self) -> Understood:
        """How the source understood what it was given."""
        return self.source.understood

    @property
    def options(self) -> Mapping[str, str]:
        """How the source is opened again."""
        return self.source.options


class _Renamed(Sequence[ImageRecord]):
    def __init__(self, records: Sequence[ImageRecord], prefix: str) -> None:
        self._records, self._prefix = records, prefix

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        if isinstance(index, slice):
            return [self._of(record) for record in self._records[index]]
        return self._of(self._records[index])

    def __iter__(self) -> Iterator[ImageRecord]:
        return map(self._of, self._records)

    def _of(self, record: ImageRecord) -> ImageRecord:
        return replace(record, key=self._prefix + record.key)


def absolute_root(root: str) -> str:
    """The root of a source, whatever folder it is used from; addresses with a scheme stay as they are."""
    return root if is_remote(root) or not root else os.path.abspath(root)
