"""Chunk files: cast, written, flushed to the disk, summed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from substyle.engine.store.errors import OverflowError16
from substyle.engine.store.files import flush, writing


def cast(rows_RD: NDArray[np.floating], dtype: str, what: str) -> NDArray[Any]:
    """Embeddings in the store's type. Raises OverflowError16 when a finite one is not finite in it."""
    with np.errstate(over="ignore"):
        cast_RD = rows_RD.astype(dtype)
    if (np.isinf(cast_RD) & np.isfinite(rows_RD)).any():
        raise OverflowError16(f'{what}: embeddings overflow {dtype}; set dtype = "float32"')
    return cast_RD


def write(array: zarr.Array[Any], chunk: Path, start: int, rows_RD: NDArray[Any]) -> str:
    """Write a shard's rows, r ≤ R from row ``start`` on, as one chunk file and flush it.

    Returns:
        SHA-256 of the file.

    Raises:
        StoreError: no room, no permission, or another failure of the disk.
    """
    with writing(chunk):
        if chunk.parent.is_dir():  # what an interrupted run left, or a chunk that is made anew
            shutil.rmtree(chunk.parent)
        array[start : start + len(rows_RD)] = rows_RD
        flush(chunk)
        return hashlib.sha256(chunk.read_bytes()).hexdigest()


def flush_folders(chunks: Iterable[Path]) -> None:
    """Flush the names of chunk files and of their shards to the disk."""
    for folder in sorted({folder for chunk in chunks for folder in chunk.parents[:2]}):
        with writing(folder):
            flush(folder)


def size(chunk: Path) -> int | None:
    """Bytes of a chunk file; None where there is none, or where no file can have that name."""
    try:
        return chunk.stat().st_size if chunk.is_file() else None
    except (OSError, ValueError):
        return None
