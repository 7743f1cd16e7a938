"""The journal: one record for every finished (shard, backbone, transformations). What has no record is not there.

A record is a small JSON file, written durably after the chunks it speaks of; as a run goes on, records are compacted
into Parquet segments. A crash between writing a segment and removing its records leaves both: they say the same.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from substyle.engine.store.files import flush, write_durably
from substyle.kernels.errors import SubstyleError

FOLDER = "journal"
COMPACT_AT = 256


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

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Record:
        """The record of a line. Raises ValueError, KeyError or TypeError on another text."""
        data = json.loads(text)
        if not isinstance(data, dict):
            raise TypeError(f"not an object: {text[:40]}")
        notes = tuple(ImageNote(**{**n, "indistinct": tuple(n["indistinct"])}) for n in data.pop("images"))
        return Record(images=notes, **data)


_SCHEMA = pa.schema([("shard", pa.int64()), ("backbone", pa.string()), ("record", pa.string())])


def read(store: Path) -> list[Record]:
    """All records of a store, in the order of (shard, backbone)."""
    folder = store / FOLDER
    texts: dict[str, None] = {}
    # loose records first: one compacted in between is then found in its segment, or in both places
    for path in sorted(folder.glob("*.json")):
        try:
            texts[path.read_text()] = None
        except FileNotFoundError:
            continue
    for path in sorted(folder.glob("segment-*.parquet")):
        try:
            texts.update(dict.fromkeys(pq.read_table(path, schema=_SCHEMA)["record"].to_pylist()))
        except (pa.ArrowInvalid, OSError) as error:
            raise SubstyleError(f"{path}: the journal segment cannot be read: {error}") from error
    try:
        records = [Record.from_json(text) for text in texts]
    except (ValueError, KeyError, TypeError) as error:
        raise SubstyleError(f"{folder}: a journal record cannot be read: {error}") from error
    return sorted(records, key=lambda record: (record.shard, record.backbone))


def write(store: Path, record: Record) -> None:
    """Write one record durably. Several records of one (shard, backbone) speak of different transformations."""
    folder = store / FOLDER
    folder.mkdir(exist_ok=True)
    count = len(record.checksums)
    first = next(iter(record.checksums), "none")
    name = f"{record.shard:08d}-{record.backbone}-{count}-{first}.json"
    write_durably(folder / name, record.to_json().encode())


def compact(store: Path, *, at: int = COMPACT_AT) -> None:
    """Move loose records into a new Parquet segment when there are at least ``at`` of them."""
    folder = store / FOLDER
    paths = sorted(folder.glob("*.json"))
    if len(paths) < max(at, 1):
        return
    records = [Record.from_json(path.read_text()) for path in paths]
    write_durably(folder / f"segment-{_next_segment(folder):05d}.parquet", _parquet(records))
    for path in paths:
        path.unlink()
    flush(folder)


def _next_segment(folder: Path) -> int:
    numbers = [int(path.stem.removeprefix("segment-")) for path in folder.glob("segment-*.parquet")]
    return max(numbers, default=-1) + 1


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
