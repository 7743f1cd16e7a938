"""The manifest: key, label and split of the image in each row, and detection of near-duplicates.

Stored as immutable Parquet segments under `images.parquet/`. The name of a segment ends in a digest of its content,
which every reader checks; its metadata name the one source of its images.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pydantic.dataclasses
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter

from substyle.engine.store.files import digest, encoded, read_named, write_once
from substyle.engine.store.layout import DEFAULT_FRACTIONS, SPLITS, TEST, TRAIN, UNLABELLED, VAL, Fractions, StoreError
from substyle.errors import ConfigError, optional
from substyle.kernels import dispatch, tables
from substyle.kernels.dispatch import for_each_image
from substyle.kernels.displacement import Banded
from substyle.kernels.philox import image_keys
from substyle.pipelines import limits
from substyle.pipelines.storage import Place
from substyle.pipelines.validation import brief

if TYPE_CHECKING:
    import pandas

FOLDER = "images.parquet"
_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("label", pa.int32()),
        ("class_name", pa.string()),
        ("split", pa.string()),
        ("given", pa.string()),  # the source's own split, if any
    ]
)
# in memory, strings are codes of a dictionary: a repeated one is held once
_CODED = pa.schema([(f.name, pa.dictionary(pa.int32(), f.type) if f.type == pa.string() else f.type) for f in _SCHEMA])
_ROW_BYTES = 0.5  # least size of a row: a key of consecutive ones, compressed, takes about two bytes
_SOURCE = b"substyle.source"
_NAME = re.compile(r"segment-(\d{5,})(?:-(\d+))?-[0-9a-f]{16}\.parquet")  # number, and how often images were removed
_MOST_SHARDS = 1 << 24  # without an image for each: what they hold may have been removed


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SourceEntry:
    """A source of a store's images.

    Attributes:
        name: prefix of its images' keys, before a slash; empty for the store's first source.
        kind: ``folder``, ``tar``, …; ``imported`` if the embeddings were computed elsewhere.
        root: absolute path or URL at the time images were last added.
        options: options to open it with, besides its root.
        fractions: shares of (train, val, test) used if the source has no splits.
    """

    name: str
    kind: str
    root: str
    options: Mapping[str, str] = field(default_factory=dict)
    fractions: Fractions | tuple[()] = ()


NOWHERE = SourceEntry("", "unknown", "")


@dataclass(frozen=True)
class Manifest:
    """Rows of a store that hold an image; padding rows between segments are not listed.

    Attributes:
        row_N: ascending rows; keys, label_N and split_N have one entry per row (as in `EmbeddingTable`).
        class_names: indexed by label; classes of later segments come after those of earlier ones.
        given_N: codes of the sources' own splits; -1 for none.
        sources: the sources of the images, each as described by its last segment.
        source_N: indices into sources.
        digest: 16 hex digits that change with any row.
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

    def to_pandas(self) -> pandas.DataFrame:
        """Return a frame with the columns key, class, split and source. Raises MissingError without pandas."""
        pandas = optional("pandas", "pandas")
        columns = {
            "key": list(self.keys),
            "class": [self.class_names[label] if label >= 0 else None for label in self.label_N.tolist()],
            "split": np.array(SPLITS)[self.split_N],
            "source": [self.sources[i].root for i in self.source_N.tolist()],
        }
        return pandas.DataFrame(columns, index=pandas.Index(self.row_N, name="row"))

    def shard_sizes(self, shard_rows: int) -> NDArray[np.int64]:
        """Return the number of images in each shard of ``shard_rows`` rows."""
        return np.bincount(self.row_N // shard_rows)

    def between(self, start: int, stop: int) -> slice:
        """Return the slice of images whose rows are in [start, stop)."""
        first, last = np.searchsorted(self.row_N, [start, stop])
        return slice(int(first), int(last))


def read(store: Place, shard_rows: int) -> Manifest:
    """Read all segments of a store's manifest.

    Args:
        shard_rows: R; a segment starts at the first shard that was free. Rows of removed images are missing.

    Raises:
        StoreError: no segment exists, or one is damaged, missing or not in the layout of `append`.
    """
    paths = segments(store)
    if not paths:
        raise StoreError(f"{store}: no manifest found ({FOLDER}/segment-*.parquet)")
    where, end = store / FOLDER, 0
    tables, entries = [], []
    try:
        for path in paths:
            where = path
            table, entry = _segment(path)
            tables.append(table)
            entries.append(entry)
            first = -(-end // shard_rows) * shard_rows
            row_N = table["row"].to_numpy()
            if (row_N < first).any() or (np.diff(row_N) < 1).any():
                raise ValueError(f"expected ascending rows from {first}")
            end = int(row_N[-1]) + 1 if len(row_N) else end
        where = store / FOLDER
        if end // shard_rows > max(sum(map(len, tables)), _MOST_SHARDS):
            raise ValueError(f"{end:,} rows, of which most are empty")
        made = _manifest(tables)
        sources = {entry.name: entry for entry in entries}  # the last segment of a source has its current root
        order = list(sources)
        of_segment = [order.index(entry.name) for entry in entries]
        return replace(
            made,
            sources=tuple(sources.values()),
            source_N=np.repeat(np.array(of_segment, np.int32), list(map(len, tables))),
            digest=hashlib.sha256(" ".join(path.name for path in paths).encode()).hexdigest()[:16],
        )
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        raise StoreError(f"{where}: cannot read the manifest: {brief(error)}") from error


def _segment(path: Place) -> tuple[pa.Table, SourceEntry]:
    table = limits.read_parquet(read_named(path), path.name, _ROW_BYTES)
    if not table.schema.equals(_CODED):
        raise ValueError("unexpected columns for a manifest")
    if sum(len(chunk.dictionary) for chunk in table["key"].chunks) < len(table):  # before they become Python's strings
        raise ValueError("duplicate or missing image keys")
    described = (table.schema.metadata or {}).get(_SOURCE)
    if described is None:
        return table, NOWHERE
    # not parsed by pydantic, which refuses the surrogates of paths that are not UTF-8
    return table.replace_schema_metadata(None), TypeAdapter(SourceEntry).validate_python(json.loads(described))


def _manifest(tables: Sequence[pa.Table]) -> Manifest:
    """Parse the segments. Raises ValueError if they contradict each other."""
    table = pa.concat_tables(tables)
    keys = limits.values(table["key"])
    if None in keys or len(set(keys)) < len(keys):
        raise ValueError("duplicate or missing image keys")
    number = {name: i for i, name in enumerate(SPLITS)}
    split_N, given_N = (_numbers(table[name], lambda text: number.get(text, -2)) for name in ("split", "given"))
    if (split_N < 0).any() or (given_N < -1).any() or table["label"].null_count:
        raise ValueError("missing or unknown splits or labels")
    known: dict[str, int] = {}
    label_N = np.concatenate([_labels(segment, known) for segment in tables])
    return Manifest(
        row_N=table["row"].to_numpy(),
        keys=tuple(keys),
        label_N=label_N,
        class_names=tuple(known),
        split_N=split_N.astype(np.int8),
        given_N=given_N.astype(np.int8),
    )


def _labels(segment: pa.Table, known: dict[str, int]) -> NDArray[np.int64]:
    """Labels of a segment's images: new classes are added to the known ones, in the order of their stored labels.

    A class that has lost all its images is none of the manifest any more, so that labels may be smaller than stored.
    """
    _, first_C, place_N = np.unique(segment["label"].to_numpy(), return_index=True, return_inverse=True)
    names = segment["class_name"].take(first_C).to_pylist()
    own = {name: known.setdefault(name, len(known)) for name in names if name is not None}
    label_C = np.array([own.get(name, UNLABELLED) for name in names], np.int64)
    label_N = _numbers(segment["class_name"], lambda name: own.get(name, -2))
    unlabelled_N = segment["label"].to_numpy() == UNLABELLED
    if len({*names}) < len(names) or not np.array_equal(label_C[place_N], label_N):
        raise ValueError("labels and class names do not match")
    if not np.array_equal(label_N == UNLABELLED, unlabelled_N):
        raise ValueError("labels and class names do not match")
    return label_N


def _numbers(column: pa.ChunkedArray, number: Callable[[str], int]) -> NDArray[np.int64]:
    """Map each string of a coded column to a number, null to -1. Calls ``number`` once for each distinct string."""
    parts = [np.zeros(0, np.int64)]
    for chunk in column.chunks:
        of_code = np.array([*map(number, chunk.dictionary.to_pylist()), -1])
        parts.append(of_code[chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False)])
    return np.concatenate(parts)


def segments(store: Place) -> list[Place]:
    """List the manifest's files in order. Raises StoreError if one is missing."""
    latest: dict[int, tuple[int, Place]] = {}
    for number, version, path in _files(store):
        known, other = latest.get(number, (-1, path))
        if known == version:
            raise StoreError(f"{store}: two manifest segments {number:05d}: {other.name}, {path.name}")
        if known < version:
            latest[number] = version, path
    paths = [path for _, (_, path) in sorted(latest.items())]
    for number, path in zip(range(len(paths)), paths, strict=True):
        if number not in latest:
            raise StoreError(f"{store}: manifest segment {number:05d} is missing before {path.name}")
    return paths


def _files(store: Place) -> list[tuple[int, int, Place]]:
    """Number, version and path of each segment's file, also of replaced ones."""
    paths = (store / FOLDER).glob("segment-[0-9]*.parquet")
    named = ((_NAME.fullmatch(path.name), path) for path in paths)
    return [(int(name[1]), int(name[2] or 0), path) for name, path in named if name]


def replaced(store: Place) -> list[Place]:
    """List files of the manifest of which a later version without removed images exists."""
    current = segments(store)
    return [path for _, _, path in _files(store) if path not in current]


def remove(store: Place, row_M: NDArray[np.int64]) -> None:
    """Write the segments of some rows anew without them, and remove the old ones. Raises StoreError."""
    current = segments(store)
    for number, version, path in _files(store):
        if path not in current:
            continue
        table, source = _segment(path)
        left_N = ~np.isin(table["row"].to_numpy(), row_M)
        if not left_N.all():
            # strings as such: a dictionary would keep those of removed images
            data = _encoded(table.filter(pa.array(left_N)).cast(_SCHEMA), source)
            name = f"segment-{number:05d}-{version + 1}-{digest(data)}.parquet"
            write_once(store / FOLDER / name, data)
    for path in replaced(store):
        path.remove()


def _encoded(table: pa.Table, source: SourceEntry) -> bytes:
    described = json.dumps({**asdict(source), "options": dict(source.options)}).encode()
    return encoded(table.replace_schema_metadata({_SOURCE: described}))


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
    """Write a segment with images in rows first_row, first_row + 1, …

    Args:
        given: the source's own splits, None for images without one.
        source: the source of the images.

    Raises:
        StoreError: a key already exists, labels and class names do not match, or the disk failed.
    """
    folder = store / FOLDER
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
        whole = _manifest([*(_segment(path)[0] for path in segments(store)), table.cast(_CODED)])
        if not np.array_equal(whole.label_N[len(whole.keys) - len(keys) :], label_N):
            raise ValueError("labels and class names do not match")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{folder}: cannot add images: {error}") from error
    data = _encoded(table, source)
    write_once(folder / f"segment-{len(segments(store)):05d}-{digest(data)}.parquet", data)


def assign(
    keys: Sequence[str],
    labels: Sequence[int],
    given: Sequence[str | None],
    *,
    seed: int,
    fractions: Fractions = DEFAULT_FRACTIONS,
    source: Collection[str | None] | None = None,
    groups: Sequence[str | None] = (),
) -> NDArray[np.int8]:
    """Assign images to splits. Returns split codes (N,) int8.

    - A source's own splits are kept. If it has only train and validation (as ImageNet), its validation images become
      the test split and validation images are drawn from its training images, as in the paper.
    - If it has no splits, or training images only, the images of each class are ordered by a hash of (seed, key) and
      divided by the fractions (train, val, test).
    - If images have groups, a split is drawn for each group, with the fractions as probabilities: it depends on the
      seed and the group alone.

    Args:
        given: the source's split of each image.
        groups: group of each image, None for an image that is a group of its own; empty for none.
        source: splits of the whole source, if these images are a part of it; defaults to those in ``given``.

    Raises:
        ConfigError: only some images have a split, or a split is unknown.
    """
    known = {name for name in (given if source is None else source) if name is not None}
    known |= {name for name in given if name is not None}
    if known and None in given:
        missing = keys[list(given).index(None)]
        raise ConfigError("split", f"{missing} has none", "a split for every image, or for none")
    if not known or known == {SPLITS[TRAIN]}:
        return _drawn(keys, labels, seed, fractions, groups)
    if not known <= set(SPLITS):
        raise ConfigError("split", sorted(known - set(SPLITS))[0], ", ".join(SPLITS))
    codes = np.array([SPLITS.index(name) for name in given if name is not None], dtype=np.int8)
    if SPLITS[TEST] not in known:
        codes[codes == VAL] = TEST
    if SPLITS[VAL] not in known or SPLITS[TEST] not in known:
        train = np.flatnonzero(codes == TRAIN)
        share = fractions[1] / max(fractions[0] + fractions[1], 1e-9)
        codes[train] = _drawn(
            [keys[i] for i in train.tolist()],
            [labels[i] for i in train.tolist()],
            seed,
            (1 - share, share, 0.0),
            [groups[i] for i in train.tolist()] if groups else (),
        )
    return codes


def _drawn(
    keys: Sequence[str], labels: Sequence[int], seed: int, fractions: Fractions, groups: Sequence[str | None]
) -> NDArray[np.int8]:
    """Splits by a hash of keys, balanced over classes, or by a hash of groups."""
    if not any(group is not None for group in groups):
        return _by_hash(keys, labels, seed, fractions)
    names = [f"key:{key}" if group is None else f"group:{group}" for key, group in zip(keys, groups, strict=True)]
    return _at(image_keys(seed, names).astype(np.float64) / 2.0**64, fractions)


def _at(place_N: NDArray[np.float64], fractions: Fractions) -> NDArray[np.int8]:
    edges = np.cumsum(fractions)[:2] / max(sum(fractions), 1e-9)
    return np.searchsorted(edges, place_N, side="right").astype(np.int8)


def _by_hash(keys: Sequence[str], labels: Sequence[int], seed: int, fractions: Fractions) -> NDArray[np.int8]:
    codes, label_N = np.zeros(len(keys), dtype=np.int8), np.asarray(labels, dtype=np.int64)
    rows = np.lexsort((image_keys(seed, [f"split:{key}" for key in keys]), label_N))
    _, first, inverse, count = np.unique(label_N[rows], return_index=True, return_inverse=True, return_counts=True)
    codes[rows] = _at((np.arange(len(rows)) - first[inverse] + 0.5) / count[inverse], fractions)
    return codes


# Near-duplicates are found from thumbnails, so that they never straddle a split.

ROWS, COLUMNS = 8, 9  # of a thumbnail; its 8 × 8 left-right comparisons are the 64-bit difference hash
_LUMA = np.array(tables.LUMA, np.float32)
GROUPING = 1  # rises where `groups` finds others
MAX_BITS = 3  # maximum number of differing hash bits
MAX_LEVELS = 4.0  # maximum mean absolute difference of two thumbnails, in grey levels


def as_hex(small_BRC: NDArray[np.uint8]) -> list[str]:
    """Encode thumbnails as hex strings."""
    return [small.tobytes().hex() for small in small_BRC]


def shrunk(canvas_BSSC: torch.Tensor) -> torch.Tensor:
    """Compute thumbnails of 8 × 9 luma bytes as area means, on the device of the canvases.

    Shape: (B, S, S, 3) uint8 to (B, 8, 9) uint8.
    Results on the CPU do not depend on the batch; results on a GPU equal them up to rounding.
    """
    # a quarter of the pixels suffices for means over about 25 × 28 of them
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
        small_BRC[i] = np.rint((means_RWC @ _LUMA) @ columns_CW.matrix_OI.T)

    for_each_image(count, one)
    return small_BRC


def _shrunk_by_torch(some_BHWC: torch.Tensor) -> torch.Tensor:
    _, height, width, _ = some_BHWC.shape
    rows_RH, columns_WC, luma_3 = _matrices(height, width, some_BHWC.device)
    return (rows_RH @ (some_BHWC.float() @ luma_3) @ columns_WC).round().to(torch.uint8)


@lru_cache(maxsize=8)
def _matrices(height: int, width: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    columns_WC = _areas(COLUMNS, width).matrix_OI.T
    return tuple(dispatch.upload(array, device) for array in (_areas(ROWS, height).matrix_OI, columns_WC, _LUMA))


@lru_cache(maxsize=8)
def _areas(count: int, length: int) -> Banded:
    """Matrix of means over ``count`` equal parts of a line, each extended to whole pixels."""
    matrix = np.zeros((count, length))
    for i in range(count):
        part = slice(i * length // count, -(-(i + 1) * length // count))
        matrix[i, part] = 1.0 / (part.stop - part.start)
    return Banded(matrix)


def groups(small_NRC: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Map each image to the first image of its group of near-duplicates; unique images map to themselves.

    Shape: thumbnails (N, 8, 9) uint8 to (N,).

    Two images are near-duplicates if their difference hashes differ in at most 3 of 64 bits and their thumbnails by
    at most 4 grey levels on average; the relation is transitive. Candidates are those of `_candidates`.
    """
    from scipy.sparse import coo_array  # slow to import
    from scipy.sparse.csgraph import connected_components

    if not len(small_NRC):
        return np.zeros(0, np.int64)
    # equal ones first: pairs of them would be many
    small_MX, of_N = np.unique(small_NRC.reshape(len(small_NRC), -1), axis=0, return_inverse=True)
    small_MRC, count = small_MX.reshape(-1, *small_NRC.shape[1:]), len(small_MX)
    bits_MX = (small_MRC[:, :, 1:] > small_MRC[:, :, :-1]).reshape(count, 64)
    word_M = np.packbits(bits_MX, axis=1).view(np.uint64).ravel()
    pairs = [np.zeros((2, 0), np.int64)]
    for one, other in _candidates(word_M, small_MX.sum(axis=1, dtype=np.uint64)):
        few = np.bitwise_count(word_M[one] ^ word_M[other]) <= MAX_BITS
        a, b = one[few], other[few]
        near = np.abs(small_MRC[a].astype(np.int16) - small_MRC[b]).mean(axis=(1, 2)) <= MAX_LEVELS
        pairs.append(np.stack([a[near], b[near]]))
    pair_2K = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(pair_2K.shape[1], np.bool_), tuple(pair_2K)), shape=(count, count))
    _, first, group = np.unique(connected_components(graph)[1][of_N], return_index=True, return_inverse=True)
    return first[group].astype(np.int64)


def _candidates(word_M: NDArray[np.uint64], sum_M: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """Yield all pairs that may be near-duplicates as two index arrays, some of them several times.

    Of five blocks of a hash, at most three have a differing bit: two are equal (Manku, Jain and Das Sarma, "Detecting
    near-duplicates for web crawling", WWW 2007). Sums of pixels differ by no more than the pixels do.
    """
    blocks = [word_M >> np.uint64(at) & np.uint64(0x1FFF) for at in range(0, 64, 13)]
    for high_M, low_M in combinations(blocks, 2):
        # sums are below 2 ** 15 - 288, so keys of different blocks are further apart than sums may be
        key_M = (high_M << np.uint64(13) | low_M) << np.uint64(15) | sum_M
        order = np.argsort(key_M)
        ordered = key_M[order]
        first = np.arange(len(order))
        for distance in range(1, len(order)):
            first = first[: np.searchsorted(first, len(order) - distance)]
            alike = ordered[first + distance] - ordered[first] <= np.uint64(MAX_LEVELS * ROWS * COLUMNS)
            first = first[alike]  # a pair further apart is alike only if this one is
            if not len(first):
                break
            yield order[first], order[first + distance]
