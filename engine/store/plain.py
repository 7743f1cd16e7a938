"""Rows of an array, read from its chunks straight to where they go.

A store's chunks are whole rows, one after the other and uncompressed (`nodes.require_layout`): reading a part of the
file puts them in their place, where a pipeline of codecs would read a whole chunk and copy it once more. Of a bucket
several chunks are asked for at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import zarr
from numpy.typing import NDArray

from substyle.engine.store.errors import StoreError
from substyle.pipelines.objects import ObjectPlace, each
from substyle.pipelines.places import Place

_NEAR = 16 << 10  # bytes between two rows that are read through: another call would take as long
_NEAR_IN_A_BUCKET = 1 << 20  # likewise: another request takes tens of milliseconds

Into: TypeAlias = Callable[[memoryview, int], int]


def read(array: zarr.Array[Any], chunk: Callable[[int], Place], start: int, out_RD: NDArray[Any]) -> None:
    """Rows from ``start`` on, as many as fit; where there is no chunk, its fill value.

    Args:
        chunk: where a chunk lies, by its number.
        out_RD: contiguous, in the array's type.

    Raises:
        StoreError: a chunk is cut short or cannot be read.
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
            _read_part(place, first, part_RD, array.fill_value)
        at += count
    each(lambda part: _read_part(*part, array.fill_value), objects)


def _read_part(path: Place, first: int, out_RD: NDArray[Any], fill: object) -> None:
    place = out_RD.view(np.uint8).reshape(-1).data
    try:
        with _opened(path) as into:
            done = into(place, first * out_RD.shape[1] * out_RD.itemsize)
    except FileNotFoundError:
        out_RD[...] = fill
        return
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error} (run substyle verify)") from error
    if done < len(place):
        raise StoreError(f"{path}: is cut short (run substyle verify)")


def take(path: Place, row_M: NDArray[np.int64], out_RD: NDArray[Any], place_M: NDArray[np.int64]) -> None:
    """Some rows of a chunk into rows ``place_M`` of an array; rows that lie near each other are read together.

    Args:
        row_M: rows of the chunk, ascending; one may be there several times.
        out_RD: contiguous, in the store's type.

    Raises:
        StoreError: the chunk is missing, cut short or cannot be read.
    """
    row_bytes = out_RD.shape[1] * out_RD.itemsize
    near = _NEAR_IN_A_BUCKET if isinstance(path, ObjectPlace) else _NEAR
    ends = np.flatnonzero(np.append(np.diff(row_M) * row_bytes > row_bytes + near, True)) + 1 if len(row_M) else row_M
    whole = out_RD.view(np.uint8).reshape(-1).data
    rows, places, start = row_M.tolist(), place_M.tolist(), 0
    try:
        with _opened(path) as into:
            for end in ends.tolist():
                own, first, alone = slice(start, end), rows[start], end - start == 1
                if alone:  # straight to its place
                    view = whole[places[start] * row_bytes : (places[start] + 1) * row_bytes]
                else:
                    near_RD = np.empty((rows[end - 1] - first + 1, out_RD.shape[1]), out_RD.dtype)
                    view = near_RD.view(np.uint8).reshape(-1).data
                if into(view, first * row_bytes) < len(view):
                    raise StoreError(f"{path}: is cut short (run substyle verify)")
                if not alone:
                    out_RD[place_M[own]] = near_RD[row_M[own] - first]
                start = end
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error} (run substyle verify)") from error


@contextmanager
def _opened(path: Place) -> Iterator[Into]:
    """Reads bytes of a chunk from an offset on into memory, as many as there are and fit; gives how many that were."""
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
