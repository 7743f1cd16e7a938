"""The manifest: which image stands in which row, and which source it came from.

Immutable Parquet segments under `images.parquet/`. Names of segments end in a digest of their content, which every
reader checks; the images of a segment come from one source, which its metadata name.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from substyle.engine.store.errors import StoreError
from substyle.engine.store.files import digest, make_folder, read_named, write_durably
from substyle.engine.store.layout import SPLITS, UNLABELLED
from substyle.pipelines.places import Place, matching

FOLDER = "images.parquet"
_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("label", pa.int32()),
        ("class_name", pa.string()),
        ("split", pa.string()),
        ("given", pa.string()),  # the split that the source gave, if it gave one
    ]
)
_SOURCE = b"substyle.source"


@dataclass(frozen=True)
class SourceEntry:
    """A source that images of a store came from.

    Attributes:
        name: keys of its images start with it and a slash; empty for the source that the store was made from.
        kind: ``folder``, ``tar``, …; ``imported`` where embeddings were made elsewhere.
        root: where it was when images were last added, an absolute path or an address.
        options: how it is opened, beside its root.
        fractions: shares of (train, val, test) where it gave no splits.
    """

    name: str
    kind: str
    root: str
    options: Mapping[str, str] = field(default_factory=dict)
    fractions: tuple[float, ...] = ()


NOWHERE = SourceEntry("", "unknown", "")


@dataclass(frozen=True)
class Rows:
    """Which rows hold images, as runs of rows that follow each other: as many runs as a store has segments.

    Attributes:
        first_G: first row of each run, ascending; count_G: its images.
    """

    first_G: NDArray[np.int64]
    count_G: NDArray[np.int64]

    @staticmethod
    def of(row_N: NDArray[np.int64]) -> Rows:
        """From ascending rows."""
        starts = np.flatnonzero(np.append(True, np.diff(row_N) != 1)) if len(row_N) else np.zeros(0, np.int64)
        return Rows(row_N[starts], np.diff(np.append(starts, len(row_N))))

    @property
    def rows(self) -> int:
        """Number of rows, padding included."""
        return int(self.first_G[-1] + self.count_G[-1]) if len(self.first_G) else 0

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.count_G.sum())

    def position(self, row_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of images in rows before each row. Shape: (M,) to (M,)."""
        at_M = np.searchsorted(self.first_G, row_M, side="right")
        before_G = np.concatenate([[0], np.cumsum(self.count_G)])
        inside_M = np.minimum(row_M - self.first_G[at_M - 1], self.count_G[at_M - 1])
        return np.where(at_M > 0, before_G[at_M - 1] + inside_M, 0)


@dataclass(frozen=True)
class Manifest:
    """Rows of a store that hold an image (rows between segments are padding and are not listed).

    Attributes:
        row_N: ascending rows; keys, label_N, split_N stand beside them (as in `EmbeddingTable`).
        class_names: indexed by label; classes of later segments come after those of earlier ones.
        given_N: splits that the sources gave, as codes; -1 where they gave none.
        sources: the sources of the images, each as its last segment names it; source_N: indices into them.
        digest: changes with any row; 16 hex digits.
    """

    row_N: NDArray[np.int64]
    keys: tuple[str, ...]
    label_N: NDArray[np.int64]
    class_names: tuple[str, ...]
    split_N: NDArray[np.int8]
    given_N: NDArray[np.int8]
    sources: tuple[SourceEntry, ...] = ()
    source_N: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    digest: str = ""

    @property
    def rows(self) -> int:
        """Number of rows, padding included."""
        return int(self.row_N[-1]) + 1 if len(self.row_N) else 0

    def between(self, start: int, stop: int) -> slice:
        """The slice of images whose rows lie in [start, stop)."""
        first, last = np.searchsorted(self.row_N, [start, stop])
        return slice(int(first), int(last))


def read(store: Place, shard_rows: int) -> Manifest:
    """All segments of a store's manifest.

    Args:
        shard_rows: R; a segment's rows follow each other from the first shard that earlier ones leave free.

    Raises:
        StoreError: there is none, or one is damaged, missing or not as `append` writes it.
    """
    paths = segments(store)
    if not paths:
        raise StoreError(f"{store}: no manifest ({FOLDER}/segment-*.parquet) is there")
    where, end = store / FOLDER, 0
    tables, entries = [], []
    try:
        for path in paths:
            where = path
            table, entry = _segment(path)
            tables.append(table)
            entries.append(entry)
            first = -(-end // shard_rows) * shard_rows
            end = first + len(table)
            if not np.array_equal(table["row"].to_numpy(), np.arange(first, end)):
                raise ValueError(f"its rows are not {first} to {end}")
        where = store / FOLDER
        made = _manifest(pa.concat_tables(tables))
        sources = {entry.name: entry for entry in entries}  # the last segment of a source knows where it is
        order = list(sources)
        of_segment = [order.index(entry.name) for entry in entries]
        return replace(
            made,
            sources=tuple(sources.values()),
            source_N=np.repeat(np.array(of_segment, np.int32), list(map(len, tables))),
            digest=hashlib.sha256(" ".join(path.name for path in paths).encode()).hexdigest()[:16],
        )
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{where}: the manifest cannot be read: {error}") from error


def _segment(path: Place) -> tuple[pa.Table, SourceEntry]:
    table = pq.read_table(io.BytesIO(read_named(path)))
    if not table.schema.equals(_SCHEMA):
        raise ValueError("its columns are not those of a manifest")
    described = (table.schema.metadata or {}).get(_SOURCE)
    if described is None:
        return table, NOWHERE
    content: dict[str, Any] = json.loads(described)
    try:
        entry = SourceEntry(**{**content, "fractions": tuple(map(float, content.get("fractions", ())))})
        texts = (entry.name, entry.kind, entry.root, *entry.options, *entry.options.values())
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a source is described by texts")
    except (TypeError, AttributeError) as error:
        raise ValueError(f"its source is not described: {error}") from error
    return table.replace_schema_metadata(None), entry


def _manifest(table: pa.Table) -> Manifest:
    """What the segments say, read as one table. Raises ValueError where it contradicts itself."""
    keys, names, splits, given = (table[name].to_pylist() for name in ("key", "class_name", "split", "given"))
    labels = table["label"].to_pylist()
    if None in keys or len(set(keys)) < len(keys):
        raise ValueError("an image stands in two rows or has no key")
    if not set(splits) <= set(SPLITS) or not set(given) <= {*SPLITS, None}:
        raise ValueError("an image has no split, or an unknown one")
    pairs = {(label, name) for label, name in zip(labels, names, strict=True)} - {(UNLABELLED, None)}
    class_names = dict(pairs)
    known = set(class_names.values())
    if set(class_names) != set(range(len(pairs))) or None in known or len(known) < len(pairs):
        raise ValueError("labels and class names do not belong together")
    return Manifest(
        row_N=table["row"].to_numpy(),
        keys=tuple(keys),
        label_N=np.array(labels, dtype=np.int64),
        class_names=tuple(class_names[i] for i in range(len(pairs))),
        split_N=np.array([SPLITS.index(name) for name in splits], dtype=np.int8),
        given_N=np.array([-1 if name is None else SPLITS.index(name) for name in given], dtype=np.int8),
    )


def segments(store: Place) -> list[Place]:
    """The manifest's files in order. Raises StoreError when one of them is missing."""
    paths = matching(store / FOLDER, "segment-[0-9]*.parquet")
    for number, path in enumerate(paths):
        if path.stem.split("-")[1] != f"{number:05d}":
            raise StoreError(f"{store}: the manifest's segment {number:05d} is missing, the next is {path.name}")
    return paths


def append(
    store: Place,
    *,
    first_row: int,
    keys: Sequence[str],
    label_N: NDArray[np.int64],
    class_names: Sequence[str],
    split_N: NDArray[np.int8],
    given: Sequence[str | None] | None = None,
    source: SourceEntry = NOWHERE,
) -> None:
    """Write one more segment whose images stand in rows first_row, first_row + 1, …

    Args:
        given: splits that the source gave; None where it gave none.
        source: where the images come from.

    Raises:
        StoreError: an image is there already, labels and class names do not belong together, or a failure of the disk.
    """
    folder = store / FOLDER
    make_folder(folder)
    columns = {
        "row": np.arange(first_row, first_row + len(keys), dtype=np.int64),
        "key": list(keys),
        "label": label_N.astype(np.int32),
        "class_name": [class_names[i] if i != UNLABELLED else None for i in label_N],
        "split": [SPLITS[code] for code in split_N],
        "given": [None] * len(keys) if given is None else list(given),
    }
    try:
        table = pa.table(columns, schema=_SCHEMA)
        _manifest(pa.concat_tables([*(_segment(path)[0] for path in segments(store)), table]))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{folder}: these images cannot be added: {error}") from error
    buffer = io.BytesIO()
    described = json.dumps({**asdict(source), "options": dict(source.options)}).encode()
    pq.write_table(table.replace_schema_metadata({_SOURCE: described}), buffer, compression="zstd")
    data = buffer.getvalue()
    write_durably(folder / f"segment-{len(segments(store)):05d}-{digest(data)}.parquet", data)
