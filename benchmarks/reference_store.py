"""Read a finished store with zarr, pyarrow and NumPy alone, by its documented layout, without the engine's code.

Shapes: T variants, N images, D embedding width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

TRAIN, VAL, TEST = "train", "val", "test"
HASH_BITS, GREY_LEVELS = 3, 4.0  # near-duplicates: largest hash distance and mean difference of thumbnails


@dataclass(frozen=True)
class Table:
    """Embeddings of one backbone.

    Attributes:
        names, kind, roles: per transformation; the first is identity.
        x_TND: float32 embeddings.
        label_N: classes, -1 for none.
        first_N: first near-duplicate of each image, itself if there is none.
        split_N: ``train``, ``val`` or ``test``; near-duplicates share the split of the first of them.
        distinct_TN: False if a transformation hardly changed the image.
        key_N: keys of the images.
    """

    names: tuple[str, ...]
    kind: NDArray[np.str_]
    roles: NDArray[np.str_]
    x_TND: NDArray[np.float32]
    label_N: NDArray[np.int64]
    first_N: NDArray[np.int64]
    split_N: NDArray[np.str_]
    distinct_TN: NDArray[np.bool_]
    key_N: NDArray[np.str_]

    def images(self, split: str) -> NDArray[np.int64]:
        """Return the indices of the images of a split."""
        return np.flatnonzero(self.split_N == split)

    def photographs(self, split: str) -> NDArray[np.int64]:
        """Return the indices of the images of a split, of near-duplicates with the same label the first."""
        of = {(int(self.first_N[n]), int(self.label_N[n])): int(n) for n in self.images(split)[::-1]}
        return np.array(sorted(of.values()), np.int64)

    def rows(
        self, transformations: NDArray[np.int64], images: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return transformation and image of each distinct row, ordered by transformation."""
        t, n = np.nonzero(self.distinct_TN[np.ix_(transformations, images)])
        return transformations[t], images[n]


def read_table(store: Path, backbone: str, suite: list[dict[str, Any]]) -> Table:
    """Read the images decoded and embedded in all transformations of a suite, as listed in ``results.json``.

    Raises:
        ValueError: unknown backbone, or the suite does not start with identity.
    """
    manifest = pa.concat_tables(
        [pq.read_table(p) for p in sorted((store / "images.parquet").glob("segment-*.parquet"))]
    )
    row_N, split_N = manifest["row"].to_numpy(), np.array(manifest["split"].to_pylist())
    label_N = manifest["label"].to_numpy().astype(np.int64)
    key_N = np.array(manifest["key"].to_pylist())
    reason, thumbnail, same = _notes(store)
    names = tuple(str(entry["name"]) for entry in suite)
    if names[:1] != ("identity",):
        raise ValueError(f"suite: starts with {names[:1]}; expected ('identity',)")
    stored: Any = zarr.open_group(store, mode="r")["embeddings"]
    groups = {group.attrs["substyle"]["name"]: group for _, group in stored.groups()}
    if backbone not in groups:
        raise ValueError(f"{store}: no backbone {backbone}; available: {', '.join(map(str, groups))}")
    # NaN marks missing embeddings
    array_of = {
        made["name"]: (array, t)
        for _, array in groups[backbone].arrays()
        for t, made in enumerate(dict(array.attrs)["substyle"]["transformations"])  # type: ignore[arg-type, call-overload, index]
    }
    x_TND = np.stack([array[t][row_N] for array, t in map(array_of.get, names)]).astype(np.float32)
    keep_N = np.array([reason.get(int(row)) == "" for row in row_N]) & np.isfinite(x_TND).all(axis=(0, 2))
    row_N, split_N, label_N, key_N = row_N[keep_N], split_N[keep_N], label_N[keep_N], key_N[keep_N]
    first_N = _first([thumbnail.get(int(row)) for row in row_N])
    return Table(
        names=names,
        kind=np.array([entry["kind"] for entry in suite]),
        roles=np.array([entry["role"] for entry in suite]),
        x_TND=np.ascontiguousarray(x_TND[:, keep_N]),
        label_N=label_N,
        first_N=first_N,
        split_N=split_N[first_N],
        distinct_TN=np.array([[name not in same.get(int(row), ()) for row in row_N] for name in names]),
        key_N=key_N,
    )


def _notes(store: Path) -> tuple[dict[int, str], dict[int, bytes], dict[int, set[str]]]:
    """Return by row: quarantine reason (empty if none), thumbnail, and transformations that hardly changed it."""
    records = [json.loads(path.read_text()) for path in (store / "journal").glob("*.json")]
    for path in (store / "journal" / "tables").glob("*.parquet"):
        records += pq.read_table(path, columns=["images"]).to_pylist()
    reason: dict[int, str] = {}
    thumbnail: dict[int, bytes] = {}
    same: dict[int, set[str]] = {}
    for note in (note for record in records for note in record["images"]):
        row, small = note["row"], note["thumbnail"]
        reason[row] = reason.get(row) or note["reason"]
        same.setdefault(row, set()).update(note["indistinct"])
        if small:
            thumbnail[row] = bytes.fromhex(small) if isinstance(small, str) else small
    return reason, thumbnail, same


def _first(thumbnails: list[bytes | None]) -> NDArray[np.int64]:
    """Return the first near-duplicate of each image, transitively; itself if there is none."""
    seen = np.array([i for i, small in enumerate(thumbnails) if small], dtype=np.int64)
    small_NRC = np.array([np.frombuffer(thumbnails[i], np.uint8) for i in seen], np.int16).reshape(-1, 8, 9)
    bit_NB = (small_NRC[:, :, 1:] > small_NRC[:, :, :-1]).reshape(len(seen), 64)
    sign_NB = np.where(bit_NB, 1, -1).astype(np.float32)
    a, b = np.nonzero(np.triu((64 - sign_NB @ sign_NB.T) / 2 <= HASH_BITS, k=1))
    near = np.abs(small_NRC[a] - small_NRC[b]).mean(axis=(1, 2)) <= GREY_LEVELS
    pairs = coo_array((np.ones(near.sum()), (a[near], b[near])), shape=(len(seen), len(seen)))
    _, first, group = np.unique(connected_components(pairs, directed=False)[1], return_index=True, return_inverse=True)
    first_N = np.arange(len(thumbnails))
    first_N[seen] = seen[first[group]]
    return first_N
