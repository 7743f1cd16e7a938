"""Embedding plans, and pending work: shards with missing embeddings."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from substyle.engine.config import HERE, ExecutorConfig
from substyle.engine.devices import AUTO
from substyle.engine.embedding.prepare import PixelPipeline, Samples, calibration_keys
from substyle.engine.store import catalog, identity
from substyle.engine.store.catalog import Definition
from substyle.engine.store.identity import EMBED, Match, Remedies
from substyle.engine.store.layout import BackboneEntry
from substyle.engine.store.lock import WHOLE, Part
from substyle.engine.store.manifest import DEFAULT_FRACTIONS, Fractions, Manifest, Rows, SourceEntry
from substyle.engine.store.records import Index
from substyle.engine.store.store import EmbeddingStore
from substyle.kernels.errors import ConfigError
from substyle.kernels.philox import image_keys
from substyle.pipelines.sources import ImageRecord, Source
from substyle.pipelines.storage import Place
from substyle.pipelines.transforms import base


@dataclass(frozen=True)
class EmbedPlan:
    """What is embedded and where to.

    Attributes:
        source: the photographs. A store that exists is grown by those that it lacks.
        store_path: where the store is or will be.
        pipeline: settings and tools.
        limit: take only so many photographs, the same ones each time, of every class and split; 0 takes all.
        fractions: shares of train, val and test where the source has no splits of its own; None: as the store has them.
        title: what progress calls it.
        part: which shards this process does where several fill one store.
        take_over: take over locks of runs on other hosts, which have ended.
        executor: where they are embedded.
        add: let the photographs be a further source of the store.
        replace: embed photographs again whose bytes have changed.
        only: the store holds these photographs and no others.
        ways: what to advise where the store was made from other photographs.
        asked: device and runtime as the user asks for them, which may be auto.
        others, absent, redo, state: what `matched` found, see `identity.Match`; given: the source as it was opened.
    """

    source: Source
    store_path: Place
    pipeline: PixelPipeline
    limit: int = 0
    fractions: Fractions | None = None
    title: str = "embed"
    part: Part = WHOLE
    take_over: bool = False
    executor: ExecutorConfig = HERE
    add: bool = False
    replace: bool = False
    only: bool = False
    ways: Remedies = EMBED
    asked: tuple[str, str] = (AUTO, AUTO)
    others: tuple[Source, ...] = ()
    redo: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    absent: tuple[SourceEntry, ...] = ()
    state: object = None
    given: Source | None = None

    def __post_init__(self) -> None:
        if self.replace and self.part.count > 1:  # parts would take each other's finished shards back
            raise ConfigError("--replace", f"with --part {self.part.index}/{self.part.count}", "without --part")

    @property
    def exists(self) -> bool:
        """Whether the store is there already."""
        return catalog.exists(self.store_path)

    def matched(self, store: EmbeddingStore, *, quiet: bool = False) -> EmbedPlan:
        """The same for a store that exists. Raises PhotographsError where that was made from other photographs."""
        given = self.given or self.source
        found: Match = identity.match(
            store,
            given,
            fractions=self.fractions,
            add=self.add,
            replace_changed=self.replace,
            ways=self.ways,
            quiet=quiet,
        )
        plan = dataclasses.replace(
            self,
            source=found.source,
            others=found.others,
            absent=found.absent,
            redo=found.redo,
            state=found.state,
            given=given,
        )
        if self.only and store.has_manifest():
            identity.require_only(store, plan.records(), (*found.others, *found.absent), self.ways)
        return plan

    def records(self) -> list[ImageRecord]:
        """The photographs to take of the source."""
        return _limited(self.source.records, self.pipeline.settings.seed, self.limit)

    def readable(self) -> dict[str, ImageRecord]:
        """The photographs of all sources, by key."""
        sources = (self.source, *self.others)
        return {record.key: record for record in chain.from_iterable(source.records for source in sources)}

    def definitions(self) -> list[Definition]:
        """The transformations that every backbone is to have."""
        known = map(base.get, self.pipeline.settings.transformations)
        return [Definition(each.describe(), each.definition_hash()) for each in known]

    def splits(self) -> Fractions:
        """Shares of train, val and test for photographs that are added."""
        return self.fractions or DEFAULT_FRACTIONS

    def samples(self) -> Samples:
        """The photographs that gates and recalibrations look at: those of the store, or of the source for a new one."""
        if self.exists:
            keys: Sequence[str] = EmbeddingStore.open(self.store_path).calibration
        else:
            keys = calibration_keys(self.records(), self.pipeline.settings.seed)
        return Samples(self.pipeline, self.readable(), keys)


def _limited(records: Sequence[ImageRecord], seed: int, limit: int) -> list[ImageRecord]:
    """A sample of photographs: splits keep their shares, and classes take turns, in one order for all splits.

    So a class with a photograph in every split is learned wherever it is tested, and a larger limit contains a
    smaller one.
    """
    if limit <= 0 or limit >= len(records):
        return list(records)
    image_N = image_keys(seed, [f"limit:{record.key}" for record in records]).tolist()
    labels = sorted({record.label for record in records}, key=lambda label: (label is None, label))
    turn = dict(
        zip(labels, np.argsort(image_keys(seed, [f"limit:{label}" for label in labels])).argsort(), strict=True)
    )
    drawn: Counter[tuple[str | None, int | None]] = Counter()
    turns: dict[str | None, list[tuple[int, int, int]]] = {}
    for i in np.argsort(image_N).tolist():
        split, label = records[i].split, records[i].label
        turns.setdefault(split, []).append((drawn[split, label], int(turn[label]), i))
        drawn[split, label] += 1
    placed = [
        ((place + 0.5) / len(members), image_N[i], i)
        for members in turns.values()
        for place, (_, _, i) in enumerate(sorted(members))
    ]
    return [records[i] for i in sorted(i for _, _, i in sorted(placed)[:limit])]


# What a store lacks: shards with something to do, and how many embeddings that is.
#
# A store of 10^9 photographs has a hundred thousand shards, and millions of chunks to make: what lacks is kept as
# arrays over shards, and there is no Python object for any of it until it is asked for.

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
class PendingShards:
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


def pending_shards(
    store: EmbeddingStore, entries: Sequence[BackboneEntry], names: Sequence[str], part: Part
) -> PendingShards:
    """What is to do until every backbone has the transformations ``names`` of all shards of a part."""
    slugs = [entry.slug for entry in entries]
    return lacking(Rows.of(store.manifest().row_N), store.settings.shard_rows, store.finished(), slugs, names, part)


def lacking(
    rows: Rows, shard_rows: int, finished: Index, slugs: Sequence[str], names: Sequence[str], part: Part
) -> PendingShards:
    """`pending_shards` from what a store says of itself.

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
    return PendingShards(
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
