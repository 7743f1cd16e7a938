"""Rows of an array, read from its chunk files straight to where they go.

A store's chunks are whole rows, one after the other, which nothing has compressed (`form` holds every array to that):
reading a part of the file puts them in their place, where a pipeline of codecs would read a whole chunk and copy it
once more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from substyle.engine.store.errors import StoreError


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
            file.seek(first * row_bytes)
            done = 0
            while done < len(place) and (count := file.readinto(place[done:])):
                done += count
    except FileNotFoundError:
        out_RD[...] = fill
        return
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error} (run substyle verify)") from error
    if done < len(place):
        raise StoreError(f"{path}: is cut short (run substyle verify)")
