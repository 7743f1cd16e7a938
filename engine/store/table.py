"""Tables of embeddings of one backbone with keys, labels and splits of their images, read lazily from a store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.store import compaction, shards
from substyle.engine.store.journal import Notes, hex_of
from substyle.engine.store.layout import SPLITS, TEST, BackboneEntry, ResampleBy, StoreError
from substyle.engine.store.manifest import Manifest, groups
from substyle.engine.store.records import Index
from substyle.engine.store.store import EmbeddingStore
from substyle.errors import SubstyleError, optional
from substyle.kernels import dispatch
from substyle.pipelines.storage import each
from substyle.pipelines.transforms.names import family
from substyle.pipelines.transforms.registry import suites

if TYPE_CHECKING:
    import pandas
    import xarray


I64 = NDArray[np.int64]
_BLOCK = 1 << 12  # images that are read into memory at once


class LazyArray(Protocol):
    """Embeddings that are read on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, N, D)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """float16 or float32."""

    def take(
        self, t_B: int | I64, n_B: I64, out_RD: NDArray[Any] | None = None, to_B: I64 | None = None
    ) -> NDArray[Any]:
        """Return rows of images n in transformations t; in rows ``to_B`` of an array, or its first, if given."""


@dataclass(frozen=True)
class EmbeddingTable:
    """Embeddings of N images in T variants by one backbone. Padding rows and quarantined images are not included.

    Attributes:
        backbone: its name, as given by the user.
        x_TND: (T, N, D) float16 or float32; an array has one contiguous block ``x_TND[t]`` per transformation. Use
            `take`, which works for arrays and lazy arrays.
        transformations: T names in suite order; the first is ``identity``.
        kind: kind of each transformation.
        roles: ``train`` or ``held_out`` for each transformation (identity is ``train``).
        keys: N image keys, unique.
        label_N: (N,) int64 class of each image, -1 for none.
        class_names: names of the classes, indexed by label.
        split_N: (N,) int8, TRAIN, VAL or TEST.
        distinct_TN: (T, N) bool; False if a variant hardly differs from identity, shows motifs of another split than
            its image's, or is absent. Such rows are excluded from transformation training and scores. All True for
            identity.
        content_N2: content hashes of the photographs, two numbers each, zeros if unknown; None if all are unknown.
        first_N: (N,) int64 first near-duplicate of each image, the image itself if there is none; None if unknown.
        thumbnail_NRC: (N, 8, 9) uint8 luma, as `manifest.shrunk` makes it, and seen_N: (N,) bool, whether an image
            has one; None if unknown.
        generators: generator that the store records of each transformation, empty if none; () if unknown.
        absent_TN: (T, N) bool; True for a real variant without a file that could be decoded. The store has NaN for it,
            and so has a table without identity; in others its row is that of identity. None if there are no such rows.
        unit: what images with one ``first_N`` are together: a photograph, or what a label says that they share.
    """

    backbone: str
    x_TND: NDArray[np.floating] | LazyArray
    transformations: tuple[str, ...]
    kind: tuple[str, ...]
    roles: tuple[str, ...]
    keys: tuple[str, ...]
    label_N: NDArray[np.int64]
    class_names: tuple[str, ...]
    split_N: NDArray[np.int8]
    distinct_TN: NDArray[np.bool_]
    content_N2: NDArray[np.uint64] | None = None
    first_N: NDArray[np.int64] | None = None
    thumbnail_NRC: NDArray[np.uint8] | None = None
    seen_N: NDArray[np.bool_] | None = None
    generators: tuple[str, ...] = ()
    absent_TN: NDArray[np.bool_] | None = None
    unit: str = "photograph"

    @property
    def families(self) -> tuple[str, ...]:
        """The transformations without their severity: ``jpeg`` of ``jpeg@3``. Shape: (T,)."""
        return tuple(map(family, self.transformations))

    @property
    def width(self) -> int:
        """Numbers in a row, D."""
        return int(self.x_TND.shape[2])

    @property
    def contents(self) -> list[str]:
        """Content hash of each photograph in hex, empty if unknown."""
        return [""] * len(self.keys) if self.content_N2 is None else hex_of(self.content_N2)

    def take(self, t_B: int | I64, n_B: I64, out_BD: NDArray[Any] | None = None) -> NDArray[Any]:
        """Copy rows of images n in transformations t. Shapes: (B,) or scalar, (B,) to (B, D)."""
        if not isinstance(self.x_TND, np.ndarray):
            return self.x_TND.take(t_B, n_B, out_BD)
        rows_BD: NDArray[Any] = self.x_TND[t_B, n_B]
        if out_BD is None:
            return rows_BD
        out_BD[...] = rows_BD
        return out_BD

    def in_memory(self) -> EmbeddingTable:
        """Return the table with all embeddings in memory, as an array of T × N × D × 2 bytes (float16)."""
        if isinstance(self.x_TND, np.ndarray):
            return self
        variants, images, width = self.x_TND.shape
        x_TND = dispatch.empty((variants, images, width), getattr(torch, str(self.x_TND.dtype)), dispatch.CPU).numpy()
        for start in range(0, images, _BLOCK):
            some = np.arange(start, min(start + _BLOCK, images))
            t_B, n_B = np.repeat(np.arange(variants), len(some)), np.tile(some, variants)
            self.x_TND.take(t_B, n_B, x_TND.reshape(-1, width), t_B * images + n_B)
        return replace(self, x_TND=x_TND)

    def take_finite(self, t_B: int | NDArray[np.int64], n_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """`take` as float32. Raises SubstyleError if a number is not finite."""
        rows_BD: NDArray[np.float32] = self.take(t_B, n_B).astype(np.float32)
        if not np.isfinite(rows_BD).all():
            raise self.not_finite()
        return rows_BD

    def not_finite(self) -> SubstyleError:
        """Create the error for embeddings that are not finite."""
        return SubstyleError(f"embeddings of {self.backbone} contain NaN or infinite values")

    def rows(self, split: int) -> NDArray[np.int64]:
        """Return the ascending indices of a split's images."""
        return np.flatnonzero(self.split_N == split)

    def by_key(self, rows: Iterable[int]) -> NDArray[np.int64]:
        """Return indices of images in the order of their keys, in which the tables of backbones agree."""
        return np.array(sorted(rows, key=self.keys.__getitem__), np.int64)

    def groups(self, by: ResampleBy) -> NDArray[np.int64]:
        """Return the group (N,) of each image for the bootstrap: its near-duplicates, or the folder of its key."""
        if by == "photograph":
            return np.arange(len(self.keys)) if self.first_N is None else self.first_N
        return np.unique([str(PurePosixPath(key).parent) for key in self.keys], return_inverse=True)[1]

    def unit_of(self, by: ResampleBy) -> str:
        """What one of the `groups` is."""
        return self.unit if by == "photograph" else by

    def groups_of(self, rows: NDArray[np.int64], by: ResampleBy) -> NDArray[np.int64]:
        """Return the `groups` of some images, numbered as they come: equal in tables that list images differently."""
        _, first, group_N = np.unique(self.groups(by)[rows], return_index=True, return_inverse=True)
        numbered: NDArray[np.int64] = np.argsort(np.argsort(first))[group_N]
        return numbered

    def new_to(self, other: EmbeddingTable) -> NDArray[np.bool_]:
        """Whether each image is neither a copy nor a near-duplicate of a training or validation image of another table.

        Shape: (N,). Imported embeddings have no thumbnails, and may have no content hashes: these images are new.
        """
        new_N = np.ones(len(self.keys), np.bool_)
        if self.content_N2 is not None and other.content_N2 is not None:
            own_N, other_N = (np.ascontiguousarray(x.content_N2).view("V16")[:, 0] for x in (self, other))
            new_N = ~np.isin(own_N, other_N[other.split_N != TEST]) | ~self.content_N2.any(axis=1)
        if self.thumbnail_NRC is None or self.seen_N is None or other.thumbnail_NRC is None or other.seen_N is None:
            return new_N
        own, others = np.flatnonzero(self.seen_N), np.flatnonzero(other.seen_N & (other.split_N != TEST))
        # those of the other table come first, and so does the first of a group with any of them
        first = groups(np.concatenate([other.thumbnail_NRC[others], self.thumbnail_NRC[own]]))[len(others) :]
        new_N[own] &= first >= len(others)
        return new_N

    def present(self, t: int, n_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Images that have a variant of a transformation: all but those without a file of a real one."""
        return n_B if self.absent_TN is None else n_B[~self.absent_TN[t, n_B]]

    def _with_nan(self) -> NDArray[np.floating]:
        """All embeddings, NaN where a real variant is absent. Shape: (T, N, D)."""
        x_TND = np.asarray(self.in_memory().x_TND)
        if self.absent_TN is None or not self.absent_TN.any():
            return x_TND
        return np.where(self.absent_TN[:, :, None], x_TND.dtype.type(np.nan), x_TND)

    def to_xarray(self) -> xarray.DataArray:
        """Return all embeddings as a labelled array with the dimensions transformation, image, feature.

        Coordinates: transformation, kind and role by transformation; image (the keys), split, and class if there are
        any ("" for none) by image; distinct by both. Raises MissingError if xarray is not installed.
        """
        xarray = optional("xarray", "xarray")
        coordinates: dict[str, Any] = {
            "transformation": list(self.transformations),
            "kind": ("transformation", list(self.kind)),
            "role": ("transformation", list(self.roles)),
            "image": list(self.keys),
            "split": ("image", np.array(SPLITS)[self.split_N]),
            "distinct": (("transformation", "image"), self.distinct_TN),
        }
        if self.class_names:
            coordinates["class"] = ("image", np.array([*self.class_names, ""])[self.label_N])
        x_TND = self._with_nan()
        dimensions = ["transformation", "image", "feature"]
        return xarray.DataArray(x_TND, coords=coordinates, dims=dimensions, name=self.backbone)

    def to_pandas(self) -> pandas.DataFrame:
        """Return all embeddings as a frame of T · N rows and D columns.

        The index has the levels transformation, kind, role, image (the key), split, class ("" for none), distinct.
        Raises MissingError if pandas is not installed.
        """
        pandas = optional("pandas", "pandas")
        names = np.array([*self.class_names, ""])[self.label_N] if self.class_names else [""] * len(self.keys)
        of_image = {"image": self.keys, "split": np.array(SPLITS)[self.split_N], "class": names}
        of_t = {"transformation": self.transformations, "kind": self.kind, "role": self.roles}
        levels = {name: np.repeat(np.asarray(values), len(self.keys)) for name, values in of_t.items()}
        levels |= {name: np.tile(np.asarray(values), len(self.transformations)) for name, values in of_image.items()}
        levels["distinct"] = self.distinct_TN.ravel()
        x_TND = self._with_nan()
        index = pandas.MultiIndex.from_arrays(list(levels.values()), names=list(levels))
        return pandas.DataFrame(x_TND.reshape(-1, self.width), index=index)

    @property
    def has_classes(self) -> bool:
        """Whether labelled images have at least two classes, so that a class task exists."""
        return len(np.unique(self.label_N[self.label_N >= 0])) >= 2


_READERS = min(4, os.cpu_count() or 1)  # shards of which rows are read at once


class StoredRows:
    """`LazyArray` of rows in a store.

    Args:
        store: the store.
        entry: a backbone of the store.
        names: T transformations.
        row_N: ascending rows of the N images in the store; all their shards are finished.
        absent_TN: rows in whose place those of identity, one of the names, are read; None for none.

    Raises StoreError if the metadata of an array are damaged, or it is shorter.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        entry: BackboneEntry,
        names: Sequence[str],
        row_N: I64,
        absent_TN: NDArray[np.bool_] | None = None,
    ) -> None:
        self.store, self.entry, self.names, self.row_N = store, entry, tuple(names), row_N
        self.absent_TN = absent_TN
        self.shape, self.dtype = (len(self.names), len(row_N), entry.dim), np.dtype(store.settings.dtype)
        own = [store.catalog.array(entry.slug, name) for name in self.names]
        self._arrays = list(dict.fromkeys(own))
        self._shards, self._widest = store.shards(), max(len(array.transformations) for array in own)
        self._shard_N, self._row_N = np.divmod(row_N, store.settings.shard_rows)
        for array in self._arrays:
            store.rows_of(array, int(row_N.max(initial=-1)) + 1)
        self._array_T = np.array([self._arrays.index(array) for array in own])
        self._own_T = np.array([a.transformations.index(name) for a, name in zip(own, self.names, strict=True)])

    def take(
        self, t_B: int | I64, n_B: I64, out_RD: NDArray[Any] | None = None, to_B: I64 | None = None
    ) -> NDArray[Any]:
        """Read rows of images n in transformations t, in file order.

        Raises:
            StoreError: a shard is missing, truncated or cannot be read, or another store has taken this one's place.
        """
        out = np.empty((len(n_B), self.entry.dim), self.dtype) if out_RD is None else out_RD
        rows_B = np.arange(len(n_B)) if to_B is None else to_B
        t_B = np.broadcast_to(t_B, n_B.shape)
        if self.absent_TN is not None:
            t_B = np.where(self.absent_TN[t_B, n_B], self.names.index("identity"), t_B)
        shard_B, row_B = self._shard_N[n_B], self._row_N[n_B]
        array_B, own_B = self._array_T[t_B], self._own_T[t_B]
        file_B = array_B * self._shards + shard_B
        # one key, because rows that are in order are sorted in one pass
        order = np.argsort((file_B * self._widest + own_B) * self.store.settings.shard_rows + row_B, kind="stable")

        def one(own: I64) -> None:
            array = self._arrays[array_B[own[0]]]
            path = array.shard(self.store.path, int(shard_B[own[0]]))
            to_M = rows_B[own]
            shards.gather(path, self.store.shape(array), own_B[own], row_B[own], out, to_M, finished=True)

        files = np.split(order, np.flatnonzero(np.diff(file_B[order])) + 1)
        each(one, files if len(order) else (), max(self.store.path.requests, _READERS))
        self.store.require_same_store()
        return out


@dataclass(frozen=True)
class StoreFacts:
    """Facts of a store's journal beyond its embeddings.

    Attributes:
        quarantined: reason by key of images that could not be decoded.
        indistinct: number of images by transformation that hardly changed them.
        left_out: reasons by key, by real transformation, of variants without a file that could be decoded.
        moved: keys of images moved to the split of a near-duplicate.
        copies: number of images that are near-duplicates of an earlier one.
        conflicting: keys of images of different classes whose files are equal, the earlier one first.
        splits: number of images in train, val and test, after moving.
        seconds: wall time of all finished shards, summed over backbones.
    """

    quarantined: dict[str, str]
    indistinct: dict[str, int]
    left_out: dict[str, dict[str, str]]
    moved: tuple[str, ...]
    copies: int
    conflicting: tuple[tuple[str, str], ...]
    splits: tuple[int, ...]
    seconds: float


def definitions(store: EmbeddingStore, entry: BackboneEntry) -> list[dict[str, object]]:
    """Return the definitions of a backbone's transformations, in the order of a suite with all of them or by name."""
    by_name = {name: made.definition for name, made in store.catalog.transformations.get(entry.slug, {}).items()}
    for names in suites().values():
        if set(by_name) <= set(names):
            return [by_name[name] for name in names if name in by_name]
    known = [name for name in suites()["substance31"] if name in by_name]
    return [by_name[name] for name in (*known, *sorted(set(by_name) - set(known)))]


def load_table(store: EmbeddingStore, backbone: str, transformations: Sequence[str] = ()) -> EmbeddingTable:
    """`open_table` with all embeddings in memory."""
    return open_table(store, backbone, transformations).in_memory()


def open_table(store: EmbeddingStore, backbone: str, transformations: Sequence[str] = ()) -> EmbeddingTable:
    """`open_tables` for one backbone; all its transformations by default."""
    return open_tables(store, [backbone], transformations)[0]


def open_tables(
    store: EmbeddingStore, backbones: Sequence[str], transformations: Sequence[str] = ()
) -> list[EmbeddingTable]:
    """Open one table per backbone with the same images and transformations.

    Tables have the images that are finished in all of these and not quarantined. Embeddings stay in the store;
    `EmbeddingTable.take` reads rows of them. If an image was moved into or out of the test split with a near-duplicate,
    its variants with pictures of the other split (icons, words) are not distinct.

    Args:
        transformations: names in the desired order; defaults to those that all backbones have.

    Raises:
        StoreError: a backbone or transformation does not exist, nothing is finished, a finished chunk is missing or
            truncated, or `verify` found damage that is not repaired yet.
    """
    entries = [store.backbone(name) for name in backbones]
    for entry in entries:
        compaction.require_none(store.path, entry.slug)
    # before the catalog, which names transformations before they are finished
    finished = store.finished().of([entry.slug for entry in entries])
    by_name = [{str(d["name"]): d for d in definitions(store, entry)} for entry in entries]
    common = [name for name in next(iter(by_name), {}) if all(name in own for own in by_name)]
    names = tuple(transformations or common)
    for entry, own in zip(entries, by_name, strict=True):
        if absent := [name for name in names if name not in own]:
            raise StoreError(f"{store.path}: {entry.name} has no embeddings of {', '.join(absent)}; run substyle embed")
    require_shards(store, finished, names)
    manifest = store.manifest()
    noted = store.notes(manifest)
    complete_N = noted.ok_N.copy()
    for entry in entries:
        complete_S = np.logical_and.reduce(finished.finished(entry.slug, names, store.shards()), axis=1)
        complete_N &= complete_S[manifest.row_N // store.settings.shard_rows]
    index_N = np.flatnonzero(complete_N)
    if not names or not len(index_N):
        raise StoreError(
            f"{store.path}: {', '.join(backbones)}: no finished shard with a valid image in all transformations"
        )
    row_N = manifest.row_N[index_N]
    # the first of all valid near-duplicates, also where it is not finished: splits are the same in all tables
    split_N = manifest.split_N[noted.first_N[index_N]]
    _, first, group_N = np.unique(noted.first_N[index_N], return_index=True, return_inverse=True)
    definitions_T = [by_name[0][name] for name in names]  # those of all backbones, see `require_definitions`
    absent_TN, distinct_TN = _absent_and_distinct(noted, names, index_N)
    # variants were rendered with the motifs of the image's split at that time
    moved_N = (split_N == TEST) != (manifest.split_N[index_N] == TEST)
    distinct_TN[np.ix_([bool(d.get("split_assets")) for d in definitions_T], moved_N)] = False
    table = partial(
        EmbeddingTable,
        transformations=names,
        kind=tuple(str(d["kind"]) for d in definitions_T),
        roles=tuple(str(d["role"]) for d in definitions_T),
        keys=tuple(manifest.keys[i] for i in index_N.tolist()),
        label_N=manifest.label_N[index_N],
        class_names=manifest.class_names,
        split_N=split_N,
        distinct_TN=distinct_TN,
        content_N2=noted.content_N2[index_N],
        first_N=first[group_N],
        thumbnail_NRC=noted.small_NRC[index_N],
        seen_N=noted.seen_N[index_N],
        generators=tuple(str(d.get("generator", "")) for d in definitions_T),
        absent_TN=absent_TN,
    )
    stand_in = absent_TN if "identity" in names else None
    return [table(backbone=entry.name, x_TND=StoredRows(store, entry, names, row_N, stand_in)) for entry in entries]


def _absent_and_distinct(
    noted: Notes, names: Sequence[str], index_N: I64
) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_]]:
    """``absent_TN`` and ``distinct_TN`` of some images, as the journal has them."""
    absent_TN = np.zeros((len(names), len(index_N)), np.bool_)
    distinct_TN = ~absent_TN
    for t, name in enumerate(names):
        if name in noted.files:
            absent_TN[t] = noted.files[name].left_out_N[index_N]
        if name in noted.indistinct:
            distinct_TN[t] = ~noted.indistinct[name][index_N]
    return absent_TN if absent_TN.any() else None, distinct_TN & ~absent_TN


def require_shards(store: EmbeddingStore, finished: Index, names: Sequence[str]) -> None:
    """Raise StoreError if a finished shard of these transformations is missing or truncated."""
    for (shard, slug), short in sorted(store.truncated(finished).items()):
        if not short & set(names):
            continue
        path = store.shard_path(slug, min(short & set(names)), shard)
        raise StoreError(f"{path}: finished shard is missing or truncated; run substyle verify, then embed")


def store_facts(store: EmbeddingStore) -> StoreFacts:
    """Return what the journal records about images, splits and time."""
    finished = store.finished()
    manifest = store.manifest()
    noted = store.notes(manifest)
    split_N = manifest.split_N[noted.first_N]
    return StoreFacts(
        quarantined={manifest.keys[i]: noted.reasons[i] for i in sorted(noted.reasons)},
        indistinct={name: int(there_N.sum()) for name, there_N in sorted(noted.indistinct.items()) if there_N.any()},
        left_out={
            name: reasons
            for name, files in noted.files.items()
            if (reasons := {manifest.keys[i]: why for i, why in sorted(files.reasons.items()) if noted.ok_N[i]})
        },
        moved=tuple(manifest.keys[i] for i in np.flatnonzero(split_N != manifest.split_N).tolist()),
        copies=int(np.count_nonzero(noted.first_N != np.arange(len(split_N)))),
        conflicting=conflicting(manifest, noted),
        splits=tuple(np.bincount(split_N, minlength=len(SPLITS)).tolist()),
        seconds=float(finished.seconds_R.sum()),
    )


def conflicting(manifest: Manifest, noted: Notes) -> tuple[tuple[str, str], ...]:
    """Keys of images whose files are equal and whose classes differ, the earlier one first."""
    index_N = np.flatnonzero(noted.content_N2.any(axis=1) & (manifest.label_N >= 0))
    _, first, group_N = np.unique(noted.content_N2[index_N], axis=0, return_index=True, return_inverse=True)
    first_N = index_N[first[group_N]]
    pairs = np.stack([first_N, index_N], axis=1)[manifest.label_N[first_N] != manifest.label_N[index_N]]
    return tuple((manifest.keys[a], manifest.keys[b]) for a, b in pairs.tolist())
