"""Records of the journal: what is said of one finished shard of one backbone."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass

import xxhash

from substyle.engine.store.duplicates import COLUMNS, ROWS
from substyle.engine.store.files import digest

THUMBNAIL_BYTES = ROWS * COLUMNS
CONTENT_BYTES = 16
_LARGEST = 2**63 - 1  # what a column of whole numbers holds


@dataclass(frozen=True)
class ImageNote:
    """What decoding learned of one image.

    Attributes:
        row: its row.
        height, width: pixels of the file's image; 0 when unknown.
        reason: why it is quarantined; empty when it is fine.
        thumbnail: 8 × 9 luma bytes of the canvas in hex, from which near-duplicates are told; empty when quarantined.
        indistinct: transformations that hardly changed it.
        content: `content_hash` of the file's bytes; empty when they could not be read.
        mark: the file's `ImageRecord.mark` when they were read; 0 when unknown.
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
            raise ValueError(f"not the note of an image: {self}"[:200])
        if max(numbers) > _LARGEST:
            raise ValueError(f"row {self.row}, {self.height} × {self.width} pixels: numbers above {_LARGEST}")
        for text, size in ((self.thumbnail, THUMBNAIL_BYTES), (self.content, CONTENT_BYTES)):
            value = bytes.fromhex(text)
            if value and (len(value) != size or value.hex() != text):
                raise ValueError(f"row {self.row}: not {size} bytes in hex: {text[:200]}")
        _require_texts(texts)


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
        if max(self.shard, self.start, self.stop) > _LARGEST or min(self.shard, self.start, self.stop) < 0:
            raise ValueError(f"shard {self.shard}, rows {self.start} to {self.stop}: numbers out of 0 to {_LARGEST}")
        if len(set(rows)) < len(rows) or not all(self.start <= row < self.stop for row in rows):
            raise ValueError(f"shard {self.shard}: images in other rows than {self.start} to {self.stop}, or twice")
        _require_texts((self.backbone, self.run, *self.checksums, *self.checksums.values()))

    def to_json(self) -> str:
        """One line of JSON."""
        # asdict would copy every one of these, which takes longer than all else
        return json.dumps({**vars(self), "images": [vars(note) for note in self.images]})

    @staticmethod
    def from_json(text: str) -> Record:
        """The record of a line. Raises ValueError, KeyError, TypeError or RecursionError on another text."""
        data = json.loads(text)
        if not isinstance(data, dict):
            raise TypeError(f"not an object: {text[:40]}")
        notes = tuple(ImageNote(**{**n, "indistinct": tuple(n["indistinct"])}) for n in data.pop("images"))
        return Record(images=notes, **data)


def content_hash(data: bytes) -> str:
    """What identifies a photograph: the XXH3 hash of its encoded bytes, 128 bits in hex."""
    return xxhash.xxh3_128_hexdigest(data)


def identity(data: bytes) -> int:
    """A number of 64 bits by which a record is told from others: of the line it was first written as."""
    return int(digest(data), 16)


def summed(checksums: dict[str, str]) -> int:
    """A number of 64 bits that changes with what was written: of the names and checksums of a record's chunks."""
    text = json.dumps(checksums, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _require_texts(texts: tuple[str, ...]) -> None:
    """Raise UnicodeEncodeError, a ValueError, for a text that is no Unicode: columns hold UTF-8."""
    for text in texts:
        text.encode()
