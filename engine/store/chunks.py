"""Chunks: cast, laid out as Zarr reads them, written whole, flushed to the disk, summed."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.store.errors import OverflowError16
from substyle.engine.store.files import flush, writing
from substyle.pipelines.objects import ObjectPlace
from substyle.pipelines.places import Place


def cast(rows_RD: NDArray[np.floating], dtype: str, what: str) -> NDArray[Any]:
    """Embeddings in the store's type. Raises OverflowError16 when a finite one is not finite in it."""
    with np.errstate(over="ignore"):
        cast_RD = rows_RD.astype(dtype)
    if (np.isinf(cast_RD) & np.isfinite(rows_RD)).any():
        raise OverflowError16(f'{what}: embeddings overflow {dtype}; set dtype = "float32"')
    return cast_RD


def write(chunk: Place, rows_RD: NDArray[Any], shard_rows: int) -> str:
    """Write a shard's rows as one chunk: r ≤ R rows, and NaN in those that are left of it.

    Returns:
        SHA-256 of the chunk.

    Raises:
        StoreError: no room, no permission, or another failure of the disk or the bucket.
    """
    whole_RD = rows_RD
    if len(rows_RD) < shard_rows:
        whole_RD = np.full((shard_rows, rows_RD.shape[1]), np.nan, rows_RD.dtype)
        whole_RD[: len(rows_RD)] = rows_RD
    # little-endian and row by row, as `nodes.require_layout` holds every array to
    data = np.ascontiguousarray(whole_RD, whole_RD.dtype.newbyteorder("<")).view(np.uint8).reshape(-1).data
    with writing(chunk):
        if isinstance(chunk, ObjectPlace):
            chunk.put(data)
        else:
            _write_file(chunk, data)
    return hashlib.sha256(data).hexdigest()


def _write_file(chunk: Path, data: memoryview) -> None:
    if chunk.parent.is_dir():  # what an interrupted run left, or a chunk that is made anew
        shutil.rmtree(chunk.parent)
    chunk.parent.mkdir(parents=True)
    partial = chunk.with_suffix(".partial")  # a reader of the rows around it must not meet half a chunk
    with partial.open("wb", buffering=0) as file:
        done = 0
        while done < len(data):
            done += file.write(data[done:])
        os.fsync(file.fileno())
    os.replace(partial, chunk)


def flush_folders(chunks: Iterable[Place]) -> None:
    """Flush the names of chunk files and of their shards to the disk."""
    files = [chunk for chunk in chunks if isinstance(chunk, Path)]
    for folder in sorted({folder for chunk in files for folder in chunk.parents[:2]}):
        with writing(folder):
            flush(folder)


class Sizes:
    """Sizes of chunks. Those in a bucket are not asked for one by one: the chunks of an array are listed."""

    def __init__(self) -> None:
        self._listed: dict[ObjectPlace, dict[str, int]] = {}

    def of(self, chunk: Place) -> int | None:
        """Bytes of a chunk; None where there is none, or where none can have that name."""
        with suppress(OSError, ValueError):
            if not isinstance(chunk, ObjectPlace):
                status = chunk.stat()
                return status.st_size if stat.S_ISREG(status.st_mode) else None
            folder = chunk.parent.parent
            if folder not in self._listed:
                self._listed[folder] = {str(found.relative_to(folder)): size for found, size in folder.walk()}
            return self._listed[folder].get(str(chunk.relative_to(folder)))
        return None
