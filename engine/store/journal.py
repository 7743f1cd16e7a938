"""The journal: one record for every finished (shard, backbone, transformations). What has no record is not there.

A record is a small JSON file, written durably after the chunks it speaks of; as a run goes on, records are compacted
into Parquet segments. A crash between writing a segment and removing its records leaves both: they say the same.
Names of records and segments end in a digest of their content, which every reader checks.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from substyle.engine.store.duplicates import COLUMNS, ROWS
from substyle.engine.store.errors import StoreError
from substyle.engine.store.files import digest, flush, read_named, remove, write_durably, writing

FOLDER = "journal"
COMPACT_AT = 256
THUMBNAIL_BYTES = ROWS * COLUMNS


@dataclass(frozen=True)
class ImageNote:
    """What decoding learned of one image.

    Attributes:
        row: its row.
        height, width: pixels of the file's image; 0 when unknown.
        reason: why it is quarantined; empty when it is fine.
        thumbnail: 8 × 9 luma bytes of the canvas in hex, from which near-duplicates are told; empty when quarantined.
        indistinct: transformations that hardly changed it.
    """

    row: int
    height: int
    width: int
    reason: str
    thumbnail: str
    indistinct: tuple[str, ...]

    def __post_init__(self) -> None:
        whole = type(self.row) is type(self.height) is type(self.width) is int
        texts = (self.reason, self.thumbnail, *self.indistinct)
        if not whole or min(self.row, self.height, self.width) < 0 or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"not the note of an image: {self}"[:200])
        if self.thumbnail and len(bytes.fromhex(self.thumbnail)) != THUMBNAIL_BYTES:
            raise ValueError(f"row {self.row}: not a thumbnail: {self.thumbnail[:200]}")


@dataclass(frozen=True)
class Record:
    """One finished shard of one backbone.

    Attributes:
        shard: its number; start, stop: its rows.
        backbone: slug of the backbone.
        checksums: SHA-256 of the chunk file of every transformation written.
        images: what decoding learned.
        seconds: wall time of the shard, shared among the backbones of its pass.
        run: id of the run that wrote it.
    """

    shard: int
    start: int
    stop: int
    backbone: str
    checksums: dict[str, str]
    images: tuple[ImageNote, ...]
    seconds: float
    run: str

    def __post_init__(self) -> None:
        whole = type(self.shard) is type(self.start) is type(self.stop) is int
        texts = isinstance(self.backbone, str) and isinstance(self.run, str) and isinstance(self.checksums, dict)
        if not (whole and texts and all(isinstance(value, str) for value in self.checksums.values())):
            raise ValueError(f"not a record: {self}"[:200])
        if type(self.seconds) not in (int, float) or not 0 <= self.seconds < math.inf:
            raise ValueError(f"shard {self.shard}: {self.seconds} seconds")
        rows = [note.row for note in self.images]
        if self.shard < 0 or len(set(rows)) < len(rows) or not all(self.start <= row < self.stop for row in rows):
            raise ValueError(f"shard {self.shard}: images in other rows than {self.start} to {self.stop}, or twice")

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Record:
        """The record of a line. Raises ValueError, KeyError, TypeError or RecursionError on another text."""
        data = json.loads(text)
        if not isinstance(data, dict):
            raise TypeError(f"not an object: {text[:40]}")
        notes = tuple(ImageNote(**{**n, "indistinct": tuple(n["indistinct"])}) for n in data.pop("images"))
        return Record(images=notes, **data)


_SCHEMA = pa.schema([("shard", pa.int64()), ("backbone", pa.string()), ("record", pa.string())])


def files(store: Path) -> list[Path]:
    """The journal's files: loose records, then segments."""
    folder = store / FOLDER
    return sorted(folder.glob("*.json")) + sorted(folder.glob("segment-[0-9]*.parquet"))


def read_file(path: Path) -> dict[str, Record]:
    """The records of one file of the journal, by the text they were written as.

    Raises:
        FileNotFoundError: it is not there.
        StoreError: it is damaged.
    """
    try:
        data = read_named(path)
        if path.suffix == ".json":
            texts = [data.decode()]
        else:
            texts = pq.read_table(io.BytesIO(data), schema=_SCHEMA)["record"].to_pylist()
        return {text: Record.from_json(text) for text in texts}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        raise StoreError(f"{path}: this file of the journal cannot be read: {error} (run substyle verify)") from error


def read(store: Path) -> list[Record]:
    """All records of a store, in the order of (shard, backbone). Raises StoreError when a file of it is damaged."""
    while True:
        found: dict[str, Record] = {}
        try:
            for path in files(store):
                found.update(read_file(path))
            break
        except FileNotFoundError:
            continue  # compacted meanwhile: what it held is in a segment that the list has not
    return sorted(found.values(), key=lambda record: (record.shard, record.backbone))


def has_loose(store: Path) -> bool:
    """Whether some records stand in files of their own."""
    return any((store / FOLDER).glob("*.json"))


def write(store: Path, record: Record) -> None:
    """Write one record durably. Several records of one (shard, backbone) speak of different transformations."""
    folder = store / FOLDER
    with writing(folder):
        folder.mkdir(exist_ok=True)
    data = record.to_json().encode()
    write_durably(folder / f"{record.shard:08d}-{record.backbone}-{digest(data)}.json", data)


def compact(store: Path, *, at: int = COMPACT_AT) -> None:
    """Move loose records into a Parquet segment when there are at least ``at`` of them; the caller has the mutex."""
    folder = store / FOLDER
    paths = sorted(folder.glob("*.json"))
    if len(paths) >= max(at, 1):
        _replace(folder, paths, [record for path in paths for record in read_file(path).values()])


def withdraw(store: Path, broken: Mapping[tuple[int, str], Set[str]], damaged: Iterable[Path] = ()) -> None:
    """Take back what records say of some transformations, so that they are embedded again; the caller owns the store.

    Args:
        broken: transformations by (shard, backbone).
        damaged: files of the journal that cannot be read; they are removed, and with them all that they said.
    """
    unreadable = set(damaged)
    paths = [path for path in files(store) if path not in unreadable]
    records: dict[str, Record] = {}
    for path in paths:
        for text, record in read_file(path).items():
            gone = broken.get((record.shard, record.backbone), set())
            kept = {name: value for name, value in record.checksums.items() if name not in gone}
            if kept or not record.checksums:
                records[text] = replace(record, checksums=kept)
    _replace(store / FOLDER, [*paths, *unreadable], list(records.values()))


def _replace(folder: Path, paths: Iterable[Path], records: list[Record]) -> None:
    """Write the records as one new segment, then remove the files that it stands for."""
    if records:
        data = _parquet(records)
        write_durably(folder / f"segment-{_next_segment(folder):05d}-{digest(data)}.parquet", data)
    with writing(folder):
        for path in paths:
            remove(path)
        flush(folder)


def _next_segment(folder: Path) -> int:
    names = [re.match(r"segment-(\d+)-", path.name) for path in folder.glob("segment-[0-9]*.parquet")]
    return max((int(name[1]) for name in names if name), default=-1) + 1


def _parquet(records: Iterable[Record]) -> bytes:
    rows = list(records)
    table = pa.table(
        {
            "shard": [r.shard for r in rows],
            "backbone": [r.backbone for r in rows],
            "record": [r.to_json() for r in rows],
        },
        schema=_SCHEMA,
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
