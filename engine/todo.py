"""What a store lacks: shards with something to do, and how many embeddings that is.

A store of 10^9 photographs has a hundred thousand shards, and millions of chunks to make: what lacks is kept as arrays
over shards, and there is no Python object for any of it until it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.index import Index
from substyle.engine.store.layout import BackboneEntry
from substyle.engine.store.lock import Part
from substyle.engine.store.manifest import Manifest, Rows

V = TypeVar("V")
Lacking = Sequence[Sequence[str]]  # for each backbone of a run the transformations that a shard lacks


class ByShard(Mapping[int, V]):
    """Something of each of some shards, by their numbers, which ascend. It is made when it is asked for."""

    def __init__(self, shard_W: NDArray[np.int64], value: Callable[[int], V]) -> None:
        self._shard_W, self._value = shard_W, value

    def __len__(self) -> int:
        return len(self._shard_W)

    def __iter__(self) -> Iterator[int]:
        return map(int, self._shard_W)

    def __getitem__(self, shard: int) -> V:
        at = int(np.searchsorted(self._shard_W, shard))
        if at == len(self) or self._shard_W[at] != shard:
            raise KeyError(shard)
        return self._value(at)


@dataclass(frozen=True)
class Todo:
    """The shards of a part of a store that lack something.

    Attributes:
        images: photographs of the store; shards: of the store.
        names: the T transformations.
        shard_W: numbers of shards that lack something, ascending; size_W: their photographs.
        lacking_WBT: whether a backbone lacks a transformation.
        total: embeddings that the part has when it is finished; done: those it has.
    """

    images: int
    shards: int
    names: tuple[str, ...]
    shard_W: NDArray[np.int64]
    size_W: NDArray[np.int64]
    lacking_WBT: NDArray[np.bool_]
    total: int
    done: int

    @property
    def lacking(self) -> Mapping[int, Lacking]:
        """What lacks, by number of the shard, in order; a shard that has everything is not there."""
        return ByShard(self.shard_W, self._lacking)

    @property
    def sizes(self) -> Mapping[int, int]:
        """Photographs of these shards."""
        return ByShard(self.shard_W, lambda at: int(self.size_W[at]))

    def _lacking(self, at: int) -> Lacking:
        return [[self.names[t] for t in np.flatnonzero(lacks_T)] for lacks_T in self.lacking_WBT[at]]


def todo(store: EmbeddingStore, entries: Sequence[BackboneEntry], names: Sequence[str], part: Part) -> Todo:
    """What is to do until every backbone has the transformations ``names`` of all shards of a part."""
    slugs = [entry.slug for entry in entries]
    return lacking(Rows.of(store.manifest().row_N), store.settings.shard_rows, store.finished(), slugs, names, part)


def lacking(
    rows: Rows, shard_rows: int, finished: Index, slugs: Sequence[str], names: Sequence[str], part: Part
) -> Todo:
    """`todo` from what a store says of itself.

    Args:
        rows: that hold images; shard_rows: R.
        finished: what its journal says.
        slugs: of the B backbones.
        names: the T transformations.
    """
    count = -(-rows.rows // shard_rows)
    shards = part.shards(count)
    mine = slice(shards.start, shards.stop, shards.step)
    shard_S = np.arange(count, dtype=np.int64)[mine]
    size_S = rows.position((shard_S + 1) * shard_rows) - rows.position(shard_S * shard_rows)
    lacking_SBT = ~np.stack([finished.finished(slug, names, count)[mine] for slug in slugs], axis=1)
    missing_S = np.count_nonzero(lacking_SBT, axis=(1, 2))
    some_S = missing_S > 0
    total = int(size_S.sum()) * len(names) * len(slugs)
    return Todo(
        images=rows.images,
        shards=count,
        names=tuple(names),
        shard_W=shard_S[some_S],
        size_W=size_S[some_S],
        lacking_WBT=lacking_SBT[some_S],
        total=total,
        done=total - int((size_S * missing_S).sum()),
    )


def images_of(manifest: Manifest, shard: int, rows: int) -> range:
    """The images of a shard of so many rows, as positions in the manifest."""
    part = manifest.between(shard * rows, (shard + 1) * rows)
    return range(part.start, part.stop)
