"""Zarr v3 arrays of a store: metadata, and chunks written and read without the zarr library.

The library takes milliseconds per chunk and writes from its own threads, which fail with a traceback on an interrupt.
Format: Zarr core specification, version 3.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import reduce
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from substyle.engine.store import codecs
from substyle.engine.store.files import flush, make_folder, naming, write_durably, writing
from substyle.engine.store.layout import CHUNKS, METADATA, Codec, OverflowError16, StoreError, StoreSettings
from substyle.pipelines.storage import ObjectPlace, Place, each

if TYPE_CHECKING:
    import zarr

# chunk (i, j) is the file c/i/j, chunk (i, j, k) the file c/i/j/k
CHUNK_NAMES: dict[str, Any] = {"name": "default", "configuration": {"separator": "/"}}
DIMENSIONS = ("image", "token", "feature")


def group(attributes: Mapping[str, Any]) -> bytes:
    """Encode the metadata of a group."""
    return _text({"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"})


def array_metadata(rows: int, row: tuple[int, ...], settings: StoreSettings, attributes: Mapping[str, Any]) -> bytes:
    """Encode the metadata of an array of rows of the shape (D,) or (P, D), in chunks of whole rows; fill value NaN."""
    return _text(
        {
            "shape": [rows, *row],
            "data_type": settings.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [settings.shard_rows, *row]}},
            "chunk_key_encoding": CHUNK_NAMES,
            "fill_value": "NaN",
            "codecs": codecs.metadata(settings.codec, settings.dtype),
            "attributes": dict(attributes),
            "dimension_names": [DIMENSIONS[0], *DIMENSIONS[-len(row) :]],
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
    )


def write(node: Place, metadata: bytes) -> None:
    """Write or replace the metadata of a group or an array. Raises StoreError if the write fails."""
    make_folder(node)
    path = node / METADATA
    if isinstance(path, ObjectPlace):
        with writing(path):
            path.put(metadata)
    else:
        write_durably(path, metadata)


def grow(node: Place, rows: int) -> None:
    """Extend an array with rows of NaN. Raises StoreError if the write fails."""
    path = node / METADATA
    with writing(path):
        metadata: dict[str, Any] = json.loads(path.read_bytes())
    metadata["shape"][0] = rows
    write(node, _text(metadata))


def require_layout(found: zarr.Array[Any], settings: StoreSettings, row: tuple[int, ...], path: Place) -> None:
    """Raise StoreError unless an array has this engine's layout: (N, *row) numbers in chunks (R, *row), encoded."""
    stored = json.loads(json.dumps(found.metadata.to_dict()))
    pairs = {
        "width": (found.shape[1:], row),
        "chunks": (found.chunks, (settings.shard_rows, *row)),
        "type": (str(found.dtype), settings.dtype),
        "codecs": (stored["codecs"], codecs.metadata(settings.codec, settings.dtype)),
        "names of chunks": (stored["chunk_key_encoding"], CHUNK_NAMES),
        "fill value": (str(found.fill_value), "nan"),
    }
    for what, (value, wanted) in pairs.items():
        if value != wanted:
            raise StoreError(f"{path / METADATA}: {what} {value}, expected {wanted}; run substyle verify")


def _text(metadata: Mapping[str, Any]) -> bytes:
    return json.dumps(metadata, indent=2).encode()


def zarr_store(path: Place) -> Any:  # noqa: ANN401 (zarr's StoreLike)
    """Convert a path or bucket location to a store that zarr can read."""
    if isinstance(path, Path):
        return str(path)
    from zarr.storage import ObjectStore

    return ObjectStore(path.rooted(), read_only=True)


def root(path: Place) -> zarr.Group:
    """Open the root group of a store. Raises StoreError if its metadata are missing or damaged."""
    import zarr  # takes a third of a second; only reading needs it

    with _named(path):
        if not (path / METADATA).exists():
            raise StoreError(f"{path / METADATA}: missing; run substyle verify")
        # list members from storage, not from consolidated metadata
        return zarr.open_group(zarr_store(path), mode="r", zarr_format=3, use_consolidated=False)


def open_array(store: Place, parent: zarr.Group, name: str) -> zarr.Array[Any]:
    """Open an array of a store. Raises StoreError if it is missing, not an array, or damaged."""
    import zarr

    with _named(store / name):
        member = parent[name]
    if not isinstance(member, zarr.Array):
        raise StoreError(f"{store}: {name} is not an array; run substyle verify")
    return member


@contextmanager
def _named(path: Place) -> Iterator[None]:
    """Convert errors of zarr about metadata to a StoreError that names their file."""
    try:
        with naming(path):
            yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise StoreError(f"{path / METADATA}: cannot read: {error!r}; run substyle verify") from error


def cast(rows_RD: NDArray[np.floating], settings: StoreSettings, what: str, *, exact: bool) -> NDArray[Any]:
    """Convert embeddings to the stored values, without rounding if ``exact``.

    Raises OverflowError16 if a finite value overflows.
    """
    with np.errstate(over="ignore"):
        cast_RD = codecs.rounded(rows_RD.astype(settings.dtype), "none" if exact else settings.codec)
    if (np.isinf(cast_RD) & np.isfinite(rows_RD)).any():
        raise OverflowError16(f'{what}: embeddings overflow {settings.dtype}; set dtype = "float32"')
    return cast_RD


def write_chunk(chunk: Place, rows_RD: NDArray[Any], settings: StoreSettings) -> str:
    """Write r ≤ R rows of a shard as one chunk, padded with NaN.

    Returns:
        SHA-256 of the chunk.

    Raises:
        StoreError: the disk or bucket is full, not writable, or failed.
    """
    whole_RD = rows_RD
    if len(rows_RD) < settings.shard_rows:
        whole_RD = np.full((settings.shard_rows, rows_RD.shape[1]), np.nan, rows_RD.dtype)
        whole_RD[: len(rows_RD)] = rows_RD
    data = codecs.encode(whole_RD, settings.codec)
    with writing(chunk):
        if isinstance(chunk, ObjectPlace):
            chunk.put(data)
        else:
            _write_file(chunk, data)
    return hashlib.sha256(data).hexdigest()


def _write_file(chunk: Path, data: memoryview) -> None:
    if chunk.parent.is_dir():  # of an interrupted run, or a chunk that is embedded again
        shutil.rmtree(chunk.parent)
    chunk.parent.mkdir(parents=True)
    partial = chunk.with_suffix(".partial")  # readers must never see a partial chunk
    with partial.open("wb", buffering=0) as file:
        done = 0
        while done < len(data):
            done += file.write(data[done:])
        os.fsync(file.fileno())
    os.replace(partial, chunk)


def flush_folders(chunks: Iterable[Place]) -> None:
    """Flush the folders of chunk files and of their shards to the disk."""
    files = [chunk for chunk in chunks if isinstance(chunk, Path)]
    for folder in sorted({folder for chunk in files for folder in chunk.parents[: _depth(chunk)]}):
        with writing(folder):
            flush(folder)


def _depth(chunk: Place) -> int:
    """Number of folders of a chunk up to that of all chunks of its array."""
    return PurePath(str(chunk)).parts[::-1].index(CHUNKS)


class Sizes:
    """Sizes of chunks. In a bucket, one listing per array replaces a request per chunk."""

    def __init__(self) -> None:
        self._listed: dict[ObjectPlace, dict[str, int]] = {}

    def of(self, chunk: Place) -> int | None:
        """Return the size of a chunk in bytes; None if it does not exist or its name is invalid."""
        with suppress(OSError, ValueError):
            if not isinstance(chunk, ObjectPlace):
                status = chunk.stat()
                return status.st_size if stat.S_ISREG(status.st_mode) else None
            folder: ObjectPlace = reduce(lambda place, _: place.parent, range(_depth(chunk)), chunk)
            if folder not in self._listed:
                self._listed[folder] = {str(found.relative_to(folder)): size for found, size in folder.walk()}
            return self._listed[folder].get(str(chunk.relative_to(folder)))
        return None


# Chunks have whole rows (`require_layout`). Without a codec, rows are read from a part of the file straight into the
# output; zarr's codec pipeline would read whole chunks and copy them once more. Compressed chunks are decoded whole.

_NEAR = 16 << 10  # gap in bytes up to which two rows are read together: another call would take as long
_NEAR_IN_A_BUCKET = 1 << 20  # the same in a bucket, where another request takes tens of milliseconds

Into: TypeAlias = Callable[[memoryview, int], int]


def read_rows(
    array: zarr.Array[Any], chunk: Callable[[int], Place], start: int, out_RD: NDArray[Any], codec: Codec
) -> None:
    """Fill ``out_RD`` with the rows from ``start`` on; missing chunks have the fill value.

    Args:
        chunk: maps a chunk number to its location. Chunks in a bucket are requested concurrently.
        out_RD: contiguous, in the array's dtype.

    Raises:
        StoreError: a chunk is truncated or cannot be read.
    """
    rows, stop = array.chunks[0], start + len(out_RD)
    at = start
    objects: list[tuple[ObjectPlace, int, NDArray[Any]]] = []
    while at < stop:
        number, first = divmod(at, rows)
        count = min(rows - first, stop - at)
        place, part_RD = chunk(number), out_RD[at - start : at - start + count]
        if isinstance(place, ObjectPlace):
            objects.append((place, first, part_RD))
        else:
            _read_part(place, first, part_RD, array.fill_value, codec)
        at += count
    each(lambda part: _read_part(*part, array.fill_value, codec), objects)


def _read_part(path: Place, first: int, out_RD: NDArray[Any], fill: object, codec: Codec) -> None:
    place = out_RD.view(np.uint8).reshape(-1).data
    try:
        if codec != "none":
            out_RD[:] = _decoded(path, codec, out_RD)[first : first + len(out_RD)]
            return
        with _opened(path) as into:
            done = into(place, first * out_RD.shape[1] * out_RD.itemsize)
    except FileNotFoundError:
        out_RD[...] = fill
        return
    except OSError as error:
        raise StoreError(f"{path}: cannot read: {error.strerror or error}; run substyle verify") from error
    if done < len(place):
        raise StoreError(f"{path}: truncated; run substyle verify")


def _decoded(path: Place, codec: Codec, like_RD: NDArray[Any]) -> NDArray[Any]:
    """A whole compressed chunk, with the dtype and width of an array."""
    data = path.read_bytes()
    try:
        return codecs.decode(data, codec, like_RD.dtype, like_RD.shape[1])
    except (ValueError, RuntimeError) as error:
        raise StoreError(f"{path}: cannot be decoded ({error}); run substyle verify") from error


def take(path: Place, row_M: NDArray[np.int64], out_RD: NDArray[Any], place_M: NDArray[np.int64], codec: Codec) -> None:
    """Read rows of a chunk into rows ``place_M`` of an array; neighbouring rows are read together.

    Args:
        row_M: rows of the chunk, ascending, possibly repeated.
        out_RD: contiguous, in the store's dtype.

    Raises:
        StoreError: the chunk is missing, truncated or cannot be read.
    """
    row_bytes = out_RD.shape[1] * out_RD.itemsize
    near = _NEAR_IN_A_BUCKET if isinstance(path, ObjectPlace) else _NEAR
    ends = np.flatnonzero(np.append(np.diff(row_M) * row_bytes > row_bytes + near, True)) + 1 if len(row_M) else row_M
    whole = out_RD.view(np.uint8).reshape(-1).data
    rows, places, start = row_M.tolist(), place_M.tolist(), 0
    try:
        if codec != "none":
            out_RD[place_M] = _decoded(path, codec, out_RD)[row_M]
            return
        with _opened(path) as into:
            for end in ends.tolist():
                own, first, alone = slice(start, end), rows[start], end - start == 1
                if alone:  # read without a copy
                    view = whole[places[start] * row_bytes : (places[start] + 1) * row_bytes]
                else:
                    near_RD = np.empty((rows[end - 1] - first + 1, out_RD.shape[1]), out_RD.dtype)
                    view = near_RD.view(np.uint8).reshape(-1).data
                if into(view, first * row_bytes) < len(view):
                    raise StoreError(f"{path}: truncated; run substyle verify")
                if not alone:
                    out_RD[place_M[own]] = near_RD[row_M[own] - first]
                start = end
    except OSError as error:
        raise StoreError(f"{path}: cannot read: {error.strerror or error}; run substyle verify") from error


@contextmanager
def _opened(path: Place) -> Iterator[Into]:
    """Yield a function that reads a chunk from an offset into a buffer and returns the number of bytes read."""
    if isinstance(path, ObjectPlace):
        yield lambda place, offset: _into_from_object(path, place, offset)
    else:
        with path.open("rb", buffering=0) as file:
            yield lambda place, offset: _into(file.fileno(), place, offset)


def _into(file: int, place: memoryview, offset: int) -> int:
    done = 0
    while done < len(place) and (count := os.preadv(file, [place[done:]], offset + done)):
        done += count
    return done


def _into_from_object(path: ObjectPlace, place: memoryview, offset: int) -> int:
    found = path.read_range(offset, len(place))
    place[: len(found)] = found
    return len(found)
