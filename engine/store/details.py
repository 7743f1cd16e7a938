"""Files that hold whole records, checksums and images included: written once, never rewritten as the journal grows."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from substyle.engine.store.record import CONTENT_BYTES, THUMBNAIL_BYTES, ImageNote, Record

_IMAGE = pa.struct(
    [
        ("row", pa.int64()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("reason", pa.string()),
        ("thumbnail", pa.large_binary()),  # all of a store may be more than 2 GB
        ("indistinct", pa.list_(pa.string())),
        ("content", pa.large_binary()),
        ("mark", pa.int64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.uint64()),
        ("shard", pa.int64()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("backbone", pa.string()),
        ("checksums", pa.map_(pa.string(), pa.string())),
        ("images", pa.list_(_IMAGE)),
        ("seconds", pa.float64()),
        ("run", pa.string()),
    ]
)


def table(records: Iterable[tuple[int, Record]]) -> pa.Table:
    """Records by identity as a table."""
    return pa.Table.from_pylist([{**vars(record), **_columns(number, record)} for number, record in records], SCHEMA)


def encode(records: Iterable[tuple[int, Record]]) -> bytes:
    """Records by identity as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table(records), buffer, compression="zstd")
    return buffer.getvalue()


def _columns(number: int, record: Record) -> dict[str, Any]:
    images = [
        {**vars(note), "thumbnail": bytes.fromhex(note.thumbnail), "content": bytes.fromhex(note.content)}
        for note in record.images
    ]
    return {"id": number, "checksums": list(record.checksums.items()), "images": images}


def decode_table(data: bytes) -> pa.Table:
    """The table of a Parquet file. Raises ValueError or ArrowException when it is none of these."""
    read = pq.read_table(io.BytesIO(data), schema=SCHEMA)
    images = pc.list_flatten(read["images"])
    names = pc.list_flatten(pc.struct_field(images, "indistinct"))
    fields = [pc.struct_field(images, field.name) for field in _IMAGE]
    if any(column.null_count for column in (*read.columns, images, *fields, names)):
        raise ValueError("a column lacks values")
    for field, size in (("thumbnail", THUMBNAIL_BYTES), ("content", CONTENT_BYTES)):
        if not set(pc.unique(pc.binary_length(pc.struct_field(images, field))).to_pylist()) <= {0, size}:
            raise ValueError(f"{field}: not of {size} bytes")
    return read


def decode(data: bytes) -> dict[int, Record]:
    """Records of a Parquet file. Raises ValueError, KeyError, TypeError or ArrowException when it is none of these."""
    found = {}
    for row in decode_table(data).to_pylist():
        number = row.pop("id")
        images = tuple(_note(note) for note in row.pop("images"))
        found[number] = Record(**{**row, "checksums": dict(row["checksums"]), "images": images})
    return found


def _note(row: dict[str, Any]) -> ImageNote:
    texts = {name: row[name].hex() for name in ("thumbnail", "content")}
    return ImageNote(**{**row, **texts, "indistinct": tuple(row["indistinct"])})
