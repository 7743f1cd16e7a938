"""Rows of an array, read from its chunk files straight to where they go.

A store's chunks are whole rows, one after the other, which nothing has compressed (`form` holds every array to that):
reading a part of the file puts them in their place, where a pipeline of codecs would read a whole chunk and copy it
once more.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from substyle.engine.store.errors import StoreError

_NEAR = 16 << 10  # bytes between two rows that are read through: another call would take as long


def read(array: zarr.Array[Any], chunk: Callable[[int], Path], start: int, out_RD: NDArray[Any]) -> None:
    """Rows from ``start`` on, as many as fit; where there is no chunk, its fill value.

    Args:
        chunk: the file of a chunk, by its number.
        out_RD: contiguous, in the array's type.

    Raises:
        StoreError: a chunk is cut short or cannot be read.
    """
    rows, stop = array.chunks[0], start + len(out_RD)
    at = start
    while at < stop:
        number, first = divmod(at, rows)
        count = min(rows - first, stop - at)
        _read_part(chunk(number), first, out_RD[at - start : at - start + count], array.fill_value)
        at += count


def _read_part(path: Path, first: int, out_RD: NDArray[Any], fill: object) -> None:
    place = out_RD.view(np.uint8).reshape(-1).data
    row_bytes = out_RD.shape[1] * out_RD.itemsize
    try:
        with path.open("rb", buffering=0) as file:
            done = _into(file.fileno(), place, first * row_bytes)
    except FileNotFoundError:
        out_RD[...] = fill
        return
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error} (run substyle verify)") from error
    if done < len(place):
        raise StoreError(f"{path}: is cut short (run substyle verify)")


def take(path: Path, row_M: NDArray[np.int64], out_RD: NDArray[Any], place_M: NDArray[np.int64]) -> None:
    """Some rows of a chunk file into rows ``place_M`` of an array; rows that lie near each other are read together.

    Args:
        row_M: rows of the chunk, ascending; one may be there several times.
        out_RD: in the store's type.

    Raises:
        StoreError: the chunk is missing, cut short or cannot be read.
    """
    row_bytes = out_RD.shape[1] * out_RD.itemsize
    ends = np.flatnonzero(np.append(np.diff(row_M) * row_bytes > row_bytes + _NEAR, True)) + 1 if len(row_M) else row_M
    start = 0
    try:
        with path.open("rb", buffering=0) as file:
            for end in ends.tolist():
                own = slice(start, end)
                first, start = int(row_M[start]), end
                near_RD = np.empty((int(row_M[end - 1]) - first + 1, out_RD.shape[1]), out_RD.dtype)
                view = near_RD.view(np.uint8).reshape(-1).data
                if _into(file.fileno(), view, first * row_bytes) < len(view):
                    raise StoreError(f"{path}: is cut short (run substyle verify)")
                out_RD[place_M[own]] = near_RD[row_M[own] - first]
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error} (run substyle verify)") from error


def _into(file: int, place: memoryview, offset: int) -> int:
    """Bytes of an open file from an offset on, as many as there are and fit; how many that were."""
    done = 0
    while done < len(place) and (count := os.preadv(file, [place[done:]], offset + done)):
        done += count
    return done
