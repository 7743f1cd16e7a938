"""Records of the journal, and their columnar index."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from substyle.engine.store.files import arrow_file, digest
from substyle.engine.store.manifest import COLUMNS, ROWS

THUMBNAIL_BYTES = ROWS * COLUMNS
CONTENT_BYTES = 16
_LARGEST = 2**63 - 1  # largest value of an int64 column


@dataclass(frozen=True)
class ImageNote:
    """Results of decoding one image.

    Attributes:
        row: row of the image.
        height, width: size of the encoded image in pixels; 0 if unknown.
        reason: why the image is quarantined; empty if it is valid.
        thumbnail: 8 × 9 luma bytes of the canvas in hex, for near-duplicate detection; empty if quarantined.
        indistinct: transformations that barely changed the image.
        content: `content_hash` of the file's bytes; empty if they could not be read.
        mark: `ImageRecord.mark` of the file when it was read; 0 if unknown.
    """

    row: int
    height: int
    width: int
    reason: str
    thumbnail: str
    indistinct: tuple[str, ...]
    content: str = ""
    mark: int = 0

    def __post_init__(self) -> None:
        numbers = (self.row, self.height, self.width, self.mark)
        texts = (self.reason, self.thumbnail, self.content, *self.indistinct)
        whole = all(type(number) is int and number >= 0 for number in numbers)
        if not whole or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"invalid image note: {self}"[:200])
        if max(numbers) > _LARGEST:
            raise ValueError(f"row {self.row}, {self.height} × {self.width} pixels: numbers must be at most {_LARGEST}")
        for text, size in ((self.thumbnail, THUMBNAIL_BYTES), (self.content, CONTENT_BYTES)):
            value = bytes.fromhex(text)
            if value and (len(value) != size or value.hex() != text):
                raise ValueError(f"row {self.row}: expected {size} bytes in hex, got {text[:200]}")
        _require_texts(texts)


@dataclass(frozen=True)
class Record:
    """One finished shard of one backbone.

    Attributes:
        shard: number of the shard; start, stop: range of its rows.
        backbone: slug of the backbone.
        checksums: SHA-256 of the chunk file of each transformation written.
        images: notes on the shard's images.
        seconds: wall time of the shard, split among the backbones of its pass.
        run: id of the run that wrote the record.
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
            raise ValueError(f"invalid record: {self}"[:200])
        if type(self.seconds) not in (int, float) or not 0 <= self.seconds < math.inf:
            raise ValueError(f"shard {self.shard}: invalid time of {self.seconds} seconds")
        rows = [note.row for note in self.images]
        if max(self.shard, self.start, self.stop) > _LARGEST or min(self.shard, self.start, self.stop) < 0:
            raise ValueError(
                f"shard {self.shard}, rows {self.start} to {self.stop}: numbers must be in 0 to {_LARGEST}"
            )
        if len(set(rows)) < len(rows) or not all(self.start <= row < self.stop for row in rows):
            raise ValueError(f"shard {self.shard}: images outside rows {self.start} to {self.stop}, or duplicated")
        _require_texts((self.backbone, self.run, *self.checksums, *self.checksums.values()))

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        # vars, because asdict copies every value, which would dominate the time
        return json.dumps({**vars(self), "images": [vars(note) for note in self.images]})

    @staticmethod
    def from_json(text: str) -> Record:
        """Parse a line of JSON. Raises ValueError, KeyError, TypeError or RecursionError if it is invalid."""
        data = json.loads(text)
        if not isinstance(data, dict):
            raise TypeError(f"not a JSON object: {text[:40]}")
        notes = tuple(ImageNote(**{**n, "indistinct": tuple(n["indistinct"])}) for n in data.pop("images"))
        return Record(images=notes, **data)


def content_hash(data: bytes) -> str:
    """Hash the encoded bytes of a photograph, which identifies it: XXH3, 128 bits in hex."""
    return xxhash.xxh3_128_hexdigest(data)


def identity(data: bytes) -> int:
    """Return the 64-bit identity of a record: a digest of its line of JSON as first written."""
    return int(digest(data), 16)


def summed(checksums: dict[str, str]) -> int:
    """Hash the names and checksums of a record's chunks to 64 bits."""
    text = json.dumps(checksums, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _require_texts(texts: tuple[str, ...]) -> None:
    """Raise UnicodeEncodeError, a ValueError, for strings that cannot be encoded as UTF-8."""
    for text in texts:
        text.encode()


# Detail files hold complete records, with checksums and images. They are not rewritten as the journal grows.
_IMAGE = pa.struct(
    [
        ("row", pa.int64()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("reason", pa.string()),
        ("thumbnail", pa.large_binary()),  # large: a store may have more than 2 GB of them
        ("indistinct", pa.list_(pa.string())),
        ("content", pa.large_binary()),
        ("mark", pa.int64()),
    ]
)
DETAIL_SCHEMA = pa.schema(
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


def details_table(records: Iterable[tuple[int, Record]]) -> pa.Table:
    """Convert records by identity to a table of `DETAIL_SCHEMA`."""
    return pa.Table.from_pylist(
        [{**vars(record), **_columns(number, record)} for number, record in records], DETAIL_SCHEMA
    )


def encode_details(records: Iterable[tuple[int, Record]]) -> bytes:
    """Encode records by identity as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(details_table(records), buffer, compression="zstd")
    return buffer.getvalue()


def _columns(number: int, record: Record) -> dict[str, Any]:
    images = [
        {**vars(note), "thumbnail": bytes.fromhex(note.thumbnail), "content": bytes.fromhex(note.content)}
        for note in record.images
    ]
    return {"id": number, "checksums": list(record.checksums.items()), "images": images}


def decode_table(data: bytes) -> pa.Table:
    """Decode a detail file to a table. Raises ValueError or ArrowException if it is invalid."""
    read = pq.read_table(arrow_file(data), schema=DETAIL_SCHEMA)
    images = pc.list_flatten(read["images"])
    names = pc.list_flatten(pc.struct_field(images, "indistinct"))
    fields = [pc.struct_field(images, field.name) for field in _IMAGE]
    if any(column.null_count for column in (*read.columns, images, *fields, names)):
        raise ValueError("null values in a column")
    for field, size in (("thumbnail", THUMBNAIL_BYTES), ("content", CONTENT_BYTES)):
        if not set(pc.unique(pc.binary_length(pc.struct_field(images, field))).to_pylist()) <= {0, size}:
            raise ValueError(f"{field}: expected values of {size} bytes")
    return read


def decode_details(data: bytes) -> dict[int, Record]:
    """Decode a detail file to records. Raises ValueError, KeyError, TypeError or ArrowException if it is invalid."""
    found = {}
    for row in decode_table(data).to_pylist():
        number = row.pop("id")
        images = tuple(_note(note) for note in row.pop("images"))
        found[number] = Record(**{**row, "checksums": dict(row["checksums"]), "images": images})
    return found


def _note(row: dict[str, Any]) -> ImageNote:
    texts = {name: row[name].hex() for name in ("thumbnail", "content")}
    return ImageNote(**{**row, **texts, "indistinct": tuple(row["indistinct"])})


# The index has one row per record, without checksums and images, so that finding what is finished does not read these.
# Loading a million records takes about a second.
DETAILS = re.compile(r"records-[0-9a-f]{16}\.parquet")
INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.uint64()),
        ("details", pa.string()),  # name of the detail file; empty for a loose record
        ("shard", pa.int64()),
        ("backbone", pa.string()),
        ("transformations", pa.string()),  # JSON list; few distinct values, so they compress to dictionary codes
        ("sums", pa.uint64()),
        ("seconds", pa.float64()),
    ]
)


def index_rows(records: Iterable[tuple[int, Record]], details: str) -> pa.Table:
    """Return the index rows of records by identity that are stored in one detail file."""
    some = list(records)
    columns = {
        "id": pa.array([number for number, _ in some], pa.uint64()),
        "details": [details] * len(some),
        "shard": [record.shard for _, record in some],
        "backbone": [record.backbone for _, record in some],
        "transformations": [json.dumps(list(record.checksums)) for _, record in some],
        "sums": pa.array([summed(record.checksums) for _, record in some], pa.uint64()),
        "seconds": [float(record.seconds) for _, record in some],
    }
    return pa.table(columns, schema=INDEX_SCHEMA)


def encode_index(table: pa.Table) -> bytes:
    """Encode index rows as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def decode_index(data: bytes) -> pa.Table:
    """Decode a segment to index rows. Raises ValueError or ArrowException if it is invalid."""
    table = pq.ParquetFile(arrow_file(data)).read()  # a third of the time of `read_table`; a run reads it twenty times
    if not table.schema.equals(INDEX_SCHEMA):
        raise ValueError("unexpected columns")
    if any(column.null_count for column in table.columns):
        raise ValueError("null values in a column")
    if len(table) and pc.min(table["shard"]).as_py() < 0:
        raise ValueError("negative shard number")
    for text in table["transformations"].unique().to_pylist():
        _names(text)
    for name in table["details"].unique().to_pylist():
        if not DETAILS.fullmatch(name):
            raise ValueError(f"not a detail file: {name[:100]}")
    return table


def together(tables: Sequence[pa.Table]) -> pa.Table:
    """Concatenate index tables, without repeated detail files. Each table has all rows of a detail file or none."""
    seen, fresh = pa.array([], pa.string()), [INDEX_SCHEMA.empty_table()]
    for table in tables:
        fresh.append(table.filter(pc.invert(pc.is_in(table["details"], seen))))
        seen = pa.concat_arrays([seen, table["details"].unique()])
    return pa.concat_tables(fresh)


def by_details(table: pa.Table) -> dict[str, pa.Table]:
    """Group the rows of a segment by detail file, keeping their order."""
    names = table["details"].unique().to_pylist()
    code_R = pc.index_in(table["details"], pa.array(names, pa.string())).to_numpy()
    order_R = np.argsort(code_R, kind="stable")
    ends = np.searchsorted(code_R[order_R], np.arange(len(names)), side="right").tolist()
    ordered = table.take(order_R)
    return {name: ordered.slice(a, b - a) for name, a, b in zip(names, [0, *ends], ends, strict=False)}


def _names(text: str) -> tuple[str, ...]:
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"not a list of transformations: {text[:100]}")
    return tuple(names)


@dataclass(frozen=True)
class Index:
    """Index of the R distinct records of a journal, sorted by (shard, backbone, identity).

    Attributes:
        shard_R: shards; seconds_R: their wall times.
        backbone_R: positions in ``backbones``, slugs of backbones.
        made_R: positions in ``made``, the transformations of a record.
        sums_R: hash of the names and checksums of a record's chunks.
    """

    shard_R: NDArray[np.int64]
    backbone_R: NDArray[np.int32]
    made_R: NDArray[np.int32]
    sums_R: NDArray[np.uint64]
    seconds_R: NDArray[np.float64]
    backbones: tuple[str, ...]
    made: tuple[tuple[str, ...], ...]

    @classmethod
    def of_tables(cls, tables: Sequence[pa.Table]) -> Index:
        """Build an index from tables of rows, dropping duplicates."""
        table = pa.concat_tables([INDEX_SCHEMA.empty_table(), *tables]).combine_chunks()
        backbone_R, backbones = _coded(table["backbone"])
        made_R, made = _coded(table["transformations"])
        number_R, shard_R = table["id"].to_numpy(), table["shard"].to_numpy()
        order_R = np.lexsort((number_R, backbone_R, shard_R))
        number_R, shard_R, backbone_R = number_R[order_R], shard_R[order_R], backbone_R[order_R]
        first_R = np.ones(len(order_R), np.bool_)
        first_R[1:] = (np.diff(shard_R) != 0) | (np.diff(backbone_R) != 0) | (number_R[1:] != number_R[:-1])
        order_R = order_R[first_R]
        return cls(
            shard_R=shard_R[first_R],
            backbone_R=backbone_R[first_R],
            made_R=made_R[order_R],
            sums_R=table["sums"].to_numpy()[order_R],
            seconds_R=table["seconds"].to_numpy()[order_R],
            backbones=backbones,
            made=tuple(map(_names, made)),
        )

    def __len__(self) -> int:
        return len(self.shard_R)

    def of(self, slugs: Iterable[str]) -> Index:
        """Select the records of some backbones."""
        wanted = set(slugs)
        kept_R = np.array([slug in wanted for slug in self.backbones], np.bool_)[self.backbone_R]
        return Index(
            shard_R=self.shard_R[kept_R],
            backbone_R=self.backbone_R[kept_R],
            made_R=self.made_R[kept_R],
            sums_R=self.sums_R[kept_R],
            seconds_R=self.seconds_R[kept_R],
            backbones=self.backbones,
            made=self.made,
        )

    def finished(self, slug: str, names: Sequence[str], shards: int) -> NDArray[np.bool_]:
        """Return which transformations of a backbone are finished in each shard. Shape: (shards, T) for T names."""
        done_ST = np.zeros((shards, len(names)), np.bool_)
        if slug not in self.backbones:
            return done_ST
        mine_R = (self.backbone_R == self.backbones.index(slug)) & (self.shard_R < shards)
        for number, made in self._sets:
            columns_K = [t for t, name in enumerate(names) if name in made]
            shard_K = self.shard_R[mine_R & (self.made_R == number)]
            done_ST[shard_K[:, None], columns_K] = True
        return done_ST

    @cached_property
    def _sets(self) -> list[tuple[int, frozenset[str]]]:
        return [(number, frozenset(self.made[number])) for number in np.unique(self.made_R).tolist()]

    def chunks(self) -> Iterator[tuple[int, str, str]]:
        """Iterate over finished chunks as (shard, slug of the backbone, transformation)."""
        columns = (self.shard_R.tolist(), self.backbone_R.tolist(), self.made_R.tolist())
        for shard, backbone, made in zip(*columns, strict=True):
            for name in self.made[made]:
                yield shard, self.backbones[backbone], name


def _coded(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Encode a column of strings as positions in its sorted distinct values."""
    coded = pa.chunked_array([column.combine_chunks()]).dictionary_encode().combine_chunks()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.chunk(0)
    texts = coded.dictionary.to_pylist()
    order = sorted(range(len(texts)), key=texts.__getitem__)
    place = np.empty(len(texts), np.int32)
    place[order] = np.arange(len(texts), dtype=np.int32)
    return place[coded.indices.to_numpy()], tuple(texts[i] for i in order)
