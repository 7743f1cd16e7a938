"""Records of the journal, and their columnar index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pydantic.dataclasses
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from substyle.engine.store.files import digest, encoded
from substyle.engine.store.layout import STRICT, is_array_name
from substyle.engine.store.manifest import COLUMNS, ROWS
from substyle.pipelines import limits

THUMBNAIL_BYTES = ROWS * COLUMNS
_ROW_BYTES = 8  # least size of a record: its identity, a hash, does not compress
CONTENT_BYTES = 16
UNREAD = "cannot be read"  # beginning of the reason of files that may be readable later
_HEX = {"thumbnail": THUMBNAIL_BYTES, "content": CONTENT_BYTES}  # fields in hex, and the bytes of a value
_Whole = Annotated[int, Field(ge=0, le=2**63 - 1)]  # of an int64 column


def _hex(size: int) -> Any:  # noqa: ANN401 (metadata of a type)
    return Field(pattern=rf"^([0-9a-f]{{{2 * size}}})?$")


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class ImageNote:
    """Results of decoding one image. Raises ValueError if a value is invalid.

    Attributes:
        row: row of the image.
        height, width: size of the encoded image in pixels; 0 if unknown.
        reason: why the image is quarantined; empty if it is valid.
        thumbnail: 8 × 9 luma bytes of the canvas in hex, for near-duplicate detection; empty if quarantined.
        indistinct: transformations that barely changed the image.
        content: `content_hash` of the file's bytes; empty if they could not be read.
        mark: `ImageRecord.mark` of the file when it was read; 0 if unknown.
    """

    row: _Whole
    height: _Whole
    width: _Whole
    reason: str
    thumbnail: Annotated[str, _hex(THUMBNAIL_BYTES)]
    indistinct: tuple[str, ...]
    content: Annotated[str, _hex(CONTENT_BYTES)] = ""
    mark: _Whole = 0


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class FileNote:
    """A file that shows an image in a real transformation. Raises ValueError if a value is invalid.

    Attributes:
        row: row of the image.
        transformation: its name.
        reason: why the variant is left out; empty if it is valid.
        content, mark: as of `ImageNote`.
    """

    row: _Whole
    transformation: str
    reason: str = ""
    content: Annotated[str, _hex(CONTENT_BYTES)] = ""
    mark: _Whole = 0


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Record:
    """One finished shard of an array of a backbone. Raises ValueError if a value is invalid.

    Attributes:
        shard: number of the shard; start, stop: range of its rows.
        backbone: slug of the backbone.
        checksums: of the chunk of each transformation written, see `shards.digest`; all are of one array.
        images: notes on the shard's images.
        seconds: wall time of the shard, split among the backbones of its pass.
        run: id of the run that wrote the record.
        files: notes on files of real transformations.
    """

    shard: _Whole
    start: _Whole
    stop: _Whole
    backbone: str
    checksums: dict[str, str]
    images: tuple[ImageNote, ...]
    seconds: Annotated[float, Field(ge=0)]
    run: str
    files: tuple[FileNote, ...] = ()

    def __post_init__(self) -> None:
        rows = {note.row for note in self.images}
        if len(rows) < len(self.images) or not all(self.start <= row < self.stop for row in rows):
            raise ValueError(f"shard {self.shard}: images outside rows {self.start} to {self.stop}, or duplicated")
        if not all(self.start <= note.row < self.stop for note in self.files):
            raise ValueError(f"shard {self.shard}: files of images outside rows {self.start} to {self.stop}")
        if not self.checksums or not all(map(is_array_name, (self.backbone, *self.checksums))):
            raise ValueError(f"shard {self.shard}: a name of an array that is not the name of a folder")

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        # vars, because asdict copies every value, which would dominate the time
        written = {**vars(self), "images": [vars(note) for note in self.images]}
        files = written.pop("files")
        return json.dumps(written | ({"files": [vars(note) for note in files]} if files else {}))

    @staticmethod
    def from_json(text: str | bytes) -> Record:
        """Parse a line of JSON. Raises ValueError if it is invalid."""
        return _RECORD.validate_json(text)


_RECORD = TypeAdapter(Record)


def content_hash(data: bytes) -> str:
    """Hash the encoded bytes of a photograph, which identifies it: XXH3, 128 bits in hex."""
    import xxhash  # only here: what reads stores needs none

    return xxhash.xxh3_128_hexdigest(data)


def identity(data: bytes) -> int:
    """Return the 64-bit identity of a record: a digest of its line of JSON as first written."""
    return int(digest(data), 16)


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
_FILE = pa.struct(
    [
        ("row", pa.int64()),
        ("transformation", pa.string()),
        ("reason", pa.string()),
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
        ("files", pa.list_(_FILE)),
        ("transformations", pa.string()),  # keys of checksums, a JSON list
        ("sums", pa.uint64()),  # `_summed` checksums
    ]
)
_CODED = pa.dictionary(pa.int32(), pa.string())
# what is finished; a million records are read in seconds if checksums and images are left out
INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.uint64()),
        ("shard", pa.int64()),
        ("backbone", _CODED),
        ("seconds", pa.float64()),
        ("transformations", _CODED),
        ("sums", pa.uint64()),
    ]
)
_INDEXED = ("shard", "backbone", "transformations", "sums", "seconds")  # columns of an `Index`


def as_table(records: Iterable[tuple[int, Record]], schema: pa.Schema = SCHEMA) -> pa.Table:
    """Convert records by identity to a table of `SCHEMA` or `INDEX_SCHEMA`."""

    def row(number: int, record: Record) -> dict[str, Any]:
        made = {**vars(record), "id": number, **_derived(record.checksums)}
        if schema is SCHEMA:
            made["checksums"] = [*record.checksums.items()]
            for name in ("images", "files"):
                made[name] = [vars(note) | _bytes(note) for note in made[name]]
        return made

    return pa.Table.from_pylist([row(number, record) for number, record in records], schema)


def _derived(checksums: dict[str, str]) -> dict[str, Any]:
    return {"transformations": json.dumps(list(checksums)), "sums": _summed(checksums)}


def _summed(checksums: dict[str, str]) -> int:
    """Hash the names and checksums of a record's chunks to 64 bits."""
    text = json.dumps(checksums, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _bytes(note: ImageNote | FileNote) -> dict[str, bytes]:
    return {name: bytes.fromhex(getattr(note, name)) for name in _HEX if hasattr(note, name)}


def encode(records: Iterable[tuple[int, Record]]) -> bytes:
    """Encode records by identity as a Parquet file."""
    return encoded(as_table(records))


def decode_table(data: bytes) -> pa.Table:
    """Decode a Parquet file to a table of `SCHEMA`. Raises ValueError or ArrowException if it is invalid."""
    read = limits.read_parquet(data, "records", _ROW_BYTES, SCHEMA)
    columns = list(read.columns)
    for name, kind in (("images", _IMAGE), ("files", _FILE)):
        notes = pc.list_flatten(read[name])
        fields = {field.name: pc.struct_field(notes, field.name) for field in kind}
        columns += [notes, *fields.values()]
        for field in _HEX.keys() & fields.keys():
            if not set(pc.unique(pc.binary_length(fields[field])).to_pylist()) <= {0, _HEX[field]}:
                raise ValueError(f"{field}: expected values of {_HEX[field]} bytes")
        if "indistinct" in fields:
            columns.append(pc.list_flatten(fields["indistinct"]))
    if any(column.null_count for column in columns):
        raise ValueError("null values in a column")
    return read


def decode_index(data: bytes) -> pa.Table:
    """Decode a Parquet file to a table of `INDEX_SCHEMA`. Raises ValueError or ArrowException if it is invalid."""
    table = limits.read_parquet(data, "records", _ROW_BYTES, SCHEMA, INDEX_SCHEMA)
    if any(column.null_count for column in table.columns):
        raise ValueError("null values in a column")
    if len(table) and pc.min(table["shard"]).as_py() < 0:
        raise ValueError("negative shard number")
    for text in table["transformations"].unique().to_pylist():
        _names(text)
    if not all(map(is_array_name, table["backbone"].unique().to_pylist())):
        raise ValueError("a backbone that is not the name of a folder")
    return table


def decode(data: bytes) -> dict[int, Record]:
    """Decode a Parquet file to records. Raises ValueError, KeyError, TypeError or ArrowException if it is invalid."""
    found = {}
    for row in decode_table(data).to_pylist():
        number, checksums = row.pop("id"), dict(row["checksums"])
        if _derived(checksums) != {name: row.pop(name) for name in ("transformations", "sums")}:
            raise ValueError("what is said of checksums is not what they are")
        images, files = notes_of(row)
        found[number] = Record(**{**row, "checksums": checksums, "images": images, "files": files})
    return found


def notes_of(row: Mapping[str, Any]) -> tuple[tuple[ImageNote, ...], tuple[FileNote, ...]]:
    """Convert the notes in a row of `SCHEMA`, or in a line of JSON. Raises ValueError or TypeError for invalid ones."""
    images = tuple(ImageNote(**_texts(note), indistinct=tuple(note["indistinct"])) for note in row["images"])
    return images, tuple(FileNote(**_texts(note)) for note in row["files"])


def _texts(row: dict[str, Any]) -> dict[str, Any]:
    texts = {name: value.hex() if isinstance(value, bytes) else value for name, value in row.items()}
    return {name: value for name, value in texts.items() if name != "indistinct"}


@lru_cache(maxsize=1024)
def _names(text: str) -> tuple[str, ...]:
    names = json.loads(text)
    if not isinstance(names, list) or not names or not all(map(is_array_name, names)):
        raise ValueError(f"not a list of transformations: {text[:100]}")
    return tuple(names)


@dataclass(frozen=True)
class Index:
    """Index of the R distinct records of a journal.

    Attributes:
        shard_R: shards.
        slug_R: slugs of backbones.
        made_R: the transformations of a record, as a JSON list.
        sums_R: hash of the names and checksums of a record's chunks.
        seconds_R: wall times of the shards.
    """

    shard_R: NDArray[np.int64]
    slug_R: NDArray[np.object_]
    made_R: NDArray[np.object_]
    sums_R: NDArray[np.uint64]
    seconds_R: NDArray[np.float64]

    @classmethod
    def of_tables(cls, tables: Sequence[pa.Table]) -> Index:
        """Build an index from tables of rows, dropping duplicates."""
        table = pa.concat_tables([INDEX_SCHEMA.empty_table(), *tables])
        first_R = np.unique(table["id"].to_numpy(), return_index=True)[1]
        return cls(*(table[name].to_numpy()[first_R] for name in _INDEXED))

    def select(self, chosen_R: NDArray[Any]) -> Index:
        """Select records."""
        return Index(*(column_R[chosen_R] for column_R in vars(self).values()))

    def __len__(self) -> int:
        return len(self.shard_R)

    def of(self, slugs: Iterable[str]) -> Index:
        """Select the records of some backbones."""
        wanted = set(slugs)
        return self.select(np.array([slug in wanted for slug in self.slug_R], np.bool_))

    def finished(self, slug: str, names: Sequence[str], shards: int) -> NDArray[np.bool_]:
        """Return which transformations of a backbone are finished in each shard. Shape: (shards, T) for T names."""
        done_ST = np.zeros((shards, len(names)), np.bool_)
        mine_R = (self.slug_R == slug) & (self.shard_R < shards)
        for text in set(self.made_R[mine_R]):
            made = _names(text)
            columns_K = [t for t, name in enumerate(names) if name in made]
            done_ST[self.shard_R[mine_R & (self.made_R == text)][:, None], columns_K] = True
        return done_ST

    def shares(self, names: Collection[str]) -> NDArray[np.float64]:
        """Return the share of these transformations among those of each record. Shape: (R,)."""
        return np.array([len({*names} & {*_names(text)}) / len(_names(text)) for text in self.made_R], np.float64)

    def records(self) -> Iterator[tuple[int, str, tuple[str, ...]]]:
        """Iterate over the records as (shard, slug of the backbone, transformations)."""
        return zip(self.shard_R.tolist(), self.slug_R, map(_names, self.made_R), strict=True)
