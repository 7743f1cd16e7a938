"""The manifest: image, label, split and duplicates of each row.

Immutable Parquet segments under `images.parquet/`. Names of segments end in a digest of their content, which every
reader checks; the images of a segment come from one source, which its metadata name.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from substyle.engine.store.files import digest, make_folder, read_named, write_durably
from substyle.engine.store.layout import SPLITS, TEST, TRAIN, UNLABELLED, VAL, StoreError
from substyle.kernels import dispatch
from substyle.kernels.dispatch import for_each_image
from substyle.kernels.displacement import Banded
from substyle.kernels.errors import ConfigError
from substyle.kernels.philox import image_keys
from substyle.pipelines.storage import Place, matching

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


# Train, validation and test: the source's own, else by a hash of (seed, key) within each class.

Fractions = tuple[float, float, float]
DEFAULT_FRACTIONS: Fractions = (0.65, 0.15, 0.20)


def assign(
    keys: Sequence[str],
    labels: Sequence[int],
    given: Sequence[str | None],
    *,
    seed: int,
    fractions: Fractions = DEFAULT_FRACTIONS,
    source: Collection[str | None] | None = None,
) -> NDArray[np.int8]:
    """Split codes of images. Shape: (N,) int8.

    - A source with splits keeps them. One that has only train and validation (as ImageNet) is tested on its validation
      images, and validation images are drawn from its training ones, as the paper does.
    - Else, and where all images of the source are training images, images of a class are ordered by a hash of
      (seed, key) and cut by the fractions (train, val, test).

    Args:
        given: the source's split of each image.
        source: splits that occur in the whole source, where these images are only some of it; by default those given.

    Raises:
        ConfigError: some images have a split and others none, or an unknown one.
    """
    known = {name for name in (given if source is None else source) if name is not None}
    known |= {name for name in given if name is not None}
    if known and None in given:
        missing = keys[list(given).index(None)]
        raise ConfigError("split", f"{missing} has none", "a split for every image or for none of them")
    if not known or known == {SPLITS[TRAIN]}:
        return _by_hash(keys, labels, seed, fractions)
    if not known <= set(SPLITS):
        raise ConfigError("split", sorted(known - set(SPLITS))[0], ", ".join(SPLITS))
    codes = np.array([SPLITS.index(name) for name in given if name is not None], dtype=np.int8)
    if SPLITS[TEST] not in known:
        codes[codes == VAL] = TEST
    if SPLITS[VAL] not in known or SPLITS[TEST] not in known:
        train = np.flatnonzero(codes == TRAIN)
        share = fractions[1] / max(fractions[0] + fractions[1], 1e-9)
        inner = _by_hash(
            [keys[i] for i in train.tolist()], [labels[i] for i in train.tolist()], seed, (1 - share, share, 0.0)
        )
        codes[train] = inner
    return codes


def _by_hash(keys: Sequence[str], labels: Sequence[int], seed: int, fractions: Fractions) -> NDArray[np.int8]:
    codes = np.zeros(len(keys), dtype=np.int8)
    order = image_keys(seed, [f"split:{key}" for key in keys])
    label_N = np.asarray(labels, dtype=np.int64)
    edges = np.cumsum(fractions)[:2] / max(sum(fractions), 1e-9)
    rows = np.lexsort((order, label_N))
    _, first, inverse, count = np.unique(label_N[rows], return_index=True, return_inverse=True, return_counts=True)
    place = (np.arange(len(rows)) - first[inverse] + 0.5) / count[inverse]
    codes[rows] = np.searchsorted(edges, place, side="right")
    return codes


# Near-duplicates among photographs, told from thumbnails, so that they never straddle a split.

ROWS, COLUMNS = 8, 9  # of a thumbnail: 8 × 8 left-right comparisons make its 64-bit difference hash
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
MAX_BITS = 3  # differing bits of two difference hashes
MAX_LEVELS = 4.0  # mean absolute difference of two thumbnails, in grey levels


def as_hex(small_BRC: NDArray[np.uint8]) -> list[str]:
    """Thumbnails as texts."""
    return [small.tobytes().hex() for small in small_BRC]


def shrunk(canvas_BSSC: torch.Tensor) -> torch.Tensor:
    """Thumbnails, 8 × 9 luma bytes each, where the canvases lie: means over areas that cover them.

    Shape: (B, S, S, 3) uint8 to (B, 8, 9) uint8.
    On the CPU they are the same whatever the batch; on a GPU they are those of the CPU but for rounding.
    """
    # a quarter of the pixels is plenty for means over about 25 × 28 of them
    some_BHWC = canvas_BSSC[:, ::2, ::2]
    if some_BHWC.is_cuda:
        return _shrunk_by_torch(some_BHWC)
    return torch.from_numpy(_shrunk_by_numpy(some_BHWC.numpy()))


def _shrunk_by_numpy(some_BHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    count, height, width, _ = some_BHWC.shape
    rows_RH, columns_CW = _areas(ROWS, height), _areas(COLUMNS, width)
    small_BRC = np.empty((count, ROWS, COLUMNS), np.uint8)

    def one(i: int) -> None:
        lines_1HX = some_BHWC[i].astype(np.float32).reshape(1, height, width * 3)
        means_RWC = rows_RH.down(lines_1HX, np.empty((1, ROWS, width * 3), np.float32)).reshape(ROWS, width, 3)
        small_BRC[i] = np.rint((means_RWC @ LUMA) @ columns_CW.matrix_OI.T)

    for_each_image(count, one)
    return small_BRC


def _shrunk_by_torch(some_BHWC: torch.Tensor) -> torch.Tensor:
    _, height, width, _ = some_BHWC.shape
    rows_RH, columns_WC, luma_3 = _matrices(height, width, some_BHWC.device)
    return (rows_RH @ (some_BHWC.float() @ luma_3) @ columns_WC).round().to(torch.uint8)


@lru_cache(maxsize=8)
def _matrices(height: int, width: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    columns_WC = _areas(COLUMNS, width).matrix_OI.T
    return tuple(dispatch.upload(array, device) for array in (_areas(ROWS, height).matrix_OI, columns_WC, LUMA))


@lru_cache(maxsize=8)
def _areas(count: int, length: int) -> Banded:
    """The matrix of means over ``count`` equal parts of a line, each widened to whole pixels."""
    matrix = np.zeros((count, length))
    for i in range(count):
        part = slice(i * length // count, -(-(i + 1) * length // count))
        matrix[i, part] = 1.0 / (part.stop - part.start)
    return Banded(matrix)


def groups(small_NRC: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For every image the index of the first image that it is a near-duplicate of, itself if of none.

    Shape: thumbnails (N, 8, 9) uint8 to (N,).

    Two images are near-duplicates when their difference hashes differ in at most 3 of 64 bits and their thumbnails by
    at most 4 grey levels on average; the relation is closed over chains. Two hashes with at most 3 differing bits agree
    in one of their four 16-bit quarters at least, so only images that share a quarter are compared.
    """
    count = len(small_NRC)
    bits = np.packbits((small_NRC[:, :, 1:] > small_NRC[:, :, :-1]).reshape(count, 64), axis=1)
    parent = np.arange(count)
    for a, b in _candidates(bits):
        differing = np.unpackbits(bits[a] ^ bits[b], axis=1).sum(axis=1)
        levels = np.abs(small_NRC[a].astype(np.int16) - small_NRC[b]).mean(axis=(1, 2))
        near = (differing <= MAX_BITS) & (levels <= MAX_LEVELS)
        for i, j in zip(a[near], b[near], strict=True):
            low, high = sorted((_root(parent, int(i)), _root(parent, int(j))))
            parent[high] = low
    return np.array([_root(parent, i) for i in range(count)], dtype=np.int64)


def _root(parent: NDArray[np.int64], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int(parent[i])
    return i


def _candidates(bits: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs that share a quarter of their hash, as two index arrays, a quarter and a distance at a time."""
    for quarter in range(4):
        value = bits[:, 2 * quarter].astype(np.int64) * 256 + bits[:, 2 * quarter + 1]
        order = np.argsort(value, kind="stable")
        ordered = value[order]
        for distance in range(1, len(order)):
            same = np.flatnonzero(ordered[distance:] == ordered[:-distance])
            if not len(same):
                break
            yield order[same], order[same + distance]
