"""Files in a store that no record speaks of."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path

from substyle.engine.store import compaction, index, journal, lock, manifest
from substyle.engine.store.layout import ARRAYS, METADATA
from substyle.pipelines.objects import ObjectPlace
from substyle.pipelines.places import Place, relative

_TEMPORARY = re.compile(r"\..*\.tmp|.*\.partial")  # of metadata and records, and of chunks
_LOCK = re.compile(r"lock(-\d+-of-\d+)?\.json")


@dataclass
class Strangers:
    """Chunks without a record and files left half written (counted), and files that are none of the store's."""

    unfinished: int = 0
    foreign: list[Place] = field(default_factory=list)


def look(store: Place, arrays: Set[tuple[str, str]], finished: Set[Place], shards: int | None) -> Strangers:
    """Walk the store.

    Args:
        arrays: (slug of the backbone, transformation) of the arrays that are known.
        finished: chunk files that records speak of.
        shards: number of shards; None when it is not known.
    """
    found = Strangers()
    for path in _files(store):
        if path in finished:
            continue
        parts = relative(path, store).parts
        if _TEMPORARY.fullmatch(parts[-1]) or _is_chunk(parts, arrays, shards):
            found.unfinished += 1
        elif not _is_record(parts):
            found.foreign.append(path)
    return found


def _is_chunk(parts: tuple[str, ...], arrays: Set[tuple[str, str]], shards: int | None) -> bool:
    """embeddings/<backbone>/<transformation>/c/<shard>/0"""
    if (
        len(parts) != 6
        or parts[0] != ARRAYS
        or (parts[1], parts[2]) not in arrays
        or (parts[3], parts[5]) != ("c", "0")
    ):
        return False
    return parts[4].isascii() and parts[4].isdigit() and (shards is None or int(parts[4]) < shards)


def _is_record(parts: tuple[str, ...]) -> bool:
    match parts:
        case (name,):
            return name in (METADATA, lock.MUTEX) or _LOCK.fullmatch(name) is not None
        case (manifest.FOLDER, name):
            return re.fullmatch(r"segment-\d{5,}-[0-9a-f]{16}\.parquet", name) is not None
        case (journal.FOLDER, name):
            return (
                compaction.SEGMENT.fullmatch(name) is not None
                or re.fullmatch(r".*-[0-9a-f]{16}\.json", name) is not None
            )
        case (journal.FOLDER, journal.DETAILS, name):
            return index.DETAILS.fullmatch(name) is not None
        case _:
            return parts[0] == ARRAYS and len(parts) <= 4 and parts[-1] == METADATA


def _files(store: Place) -> Iterator[Place]:
    if isinstance(store, ObjectPlace):
        yield from (path for path, _ in store.walk())
        return
    for folder, _, names in os.walk(store):
        for name in sorted(names):
            yield Path(folder) / name
