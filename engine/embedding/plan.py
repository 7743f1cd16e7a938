"""Embedding plans, and pending work: shards with missing embeddings."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from substyle.engine.backbones.gate import GATE_IMAGES, SPOT_PICTURES
from substyle.engine.backbones.runtimes.base import PrecisionPolicy
from substyle.engine.config import HERE, ExecutorConfig
from substyle.engine.devices import AUTO
from substyle.engine.embedding.blobs import read, require_shown
from substyle.engine.embedding.prepare import OwnSamples, PixelPipeline, gate_keys
from substyle.engine.store import catalog, identity
from substyle.engine.store.identity import EMBED, Match, Remedies
from substyle.engine.store.layout import TEST, UNLABELLED, BackboneEntry, Fractions
from substyle.engine.store.lock import WHOLE, Part
from substyle.engine.store.manifest import Manifest, assign
from substyle.engine.store.records import Index
from substyle.engine.store.store import EmbeddingStore
from substyle.errors import ConfigError
from substyle.kernels.philox import image_keys
from substyle.pipelines.sources import ImageRecord, Source
from substyle.pipelines.storage import REQUESTS, Place, is_remote

_READERS = 4  # of files on disks
_TRIED = 16  # photographs of a source


@dataclass(frozen=True)
class EmbedPlan:
    """Photographs to embed and the store to embed them into.

    Attributes:
        source: the photographs. Those missing in an existing store are added.
        store_path: an existing store, or the path of a new one.
        pipeline: settings and tools.
        limit: maximum number of photographs, a fixed sample over classes and splits; 0 for all.
        fractions: shares of train, val and test if the source has no splits; None for the store's.
        title: title of the progress bar.
        part: the shards of this process if several processes embed into one store.
        take_over: take over the locks of ended runs on other hosts.
        executor: where to embed.
        add: accept the photographs as a new source of the store.
        replace: embed photographs again if their bytes have changed.
        remove_missing: remove photographs that the source does not have any more.
        only: require that the store contains no other photographs.
        remedies: advice if the store was embedded from other photographs.
        asked: device and runtime as given by the user, possibly auto.
        match: result of `matched`; given: the source before.
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
    remove_missing: bool = False
    only: bool = False
    remedies: Remedies = EMBED
    asked: tuple[str, str] = (AUTO, AUTO)
    match: Match = field(default_factory=Match)
    given: Source | None = None

    def __post_init__(self) -> None:
        for option, given in {"--replace": self.replace, "--remove-missing": self.remove_missing}.items():
            if given and self.part.count > 1:  # parts would withdraw each other's finished shards
                raise ConfigError(option, f"with --part {self.part.index}/{self.part.count}", "without --part")
        require_shown(self.source, self.pipeline.settings.transformations)

    @property
    def exists(self) -> bool:
        """Whether the store exists."""
        return catalog.exists(self.store_path)

    def matched(self, store: EmbeddingStore, *, quiet: bool = False) -> EmbedPlan:
        """Match the source with an existing store. Raises PhotographsError if its photographs are different."""
        given = self.given or self.source
        source, found = identity.match(
            store,
            given,
            fractions=self.fractions,
            add=self.add,
            replace_changed=self.replace,
            remove_missing=self.remove_missing,
            remedies=self.remedies,
            quiet=quiet,
        )
        plan = dataclasses.replace(self, source=source, match=found, given=given)
        if self.only and store.has_manifest():
            identity.require_only(store, plan.records(), (*found.others, *found.absent), self.remedies)
        return plan

    def records(self) -> list[ImageRecord]:
        """Return the photographs of the source within the limit."""
        return limited(self.source.records, self.pipeline.settings.seed, self.limit)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The source, and the others of the store."""
        return self.source, *self.match.others

    def readable(self) -> Iterator[ImageRecord]:
        """Iterate over the photographs of all sources."""
        return chain.from_iterable(source.records for source in self.sources)

    @property
    def readers(self) -> int:
        """Number of files that are read ahead at once. Reading is limited by disks or requests, not cores."""
        return REQUESTS if is_remote(self.source.root) else _READERS

    def found(self, keys: Sequence[str]) -> list[ImageRecord | None]:
        """Return photographs of all sources; None for one that is in none of them any more."""
        of_sources = [_found(source.records, keys) for source in self.sources]
        return [next(filter(None, found), None) for found in zip(*of_sources, strict=True)]

    def shards(self, store: EmbeddingStore) -> Callable[[int, Lacking], ShardTask]:
        """Return a function that gives the work on a shard, by its number and what it lacks."""
        manifest, size = store.manifest(), store.settings.shard_rows
        notes = store.notes(manifest)  # of earlier passes

        def shard(number: int, lacking: Lacking) -> ShardTask:
            own = manifest.between(number * size, (number + 1) * size)
            noted = {"": (notes.ok_N[own], notes.content_N2[own])}
            for name, files in notes.files.items():
                noted[name] = (notes.ok_N[own] & files.ok_N[own], files.content_N2[own])
            keys, test_K = manifest.keys[own], manifest.split_N[own] == TEST
            row_K = manifest.row_N[own] - number * size
            return ShardTask(number, number * size, lacking, row_K, keys, test_K, self.found(keys), noted)

        return shard

    def samples(self) -> OwnSamples:
        """Return the photographs and, of an existing store, the policies of its backbones, for gates.

        They stay the same when photographs are added, and are the same for all processes that fill a store.
        """
        if self.exists:
            store = EmbeddingStore.open(self.store_path)
            return samples(store, self.pipeline, self.by_key(store.calibration))
        keys = gate_keys(self.records(), self.pipeline.settings.seed)
        return _samples(self.pipeline, self.by_key(keys), keys, {})

    def by_key(self, keys: Sequence[str]) -> dict[str, ImageRecord]:
        """Return those photographs of all sources that still exist, by key."""
        return {record.key: record for record in self.found(keys) if record is not None}

    def visible(self) -> list[ImageRecord]:
        """Return a photograph of each source that can be read; none of a source whose first ones cannot."""
        firsts = ((record for record in source.records[:_TRIED] if not read(record).reason) for source in self.sources)
        return [record for found in firsts if (record := next(found, None)) is not None]


def samples(store: EmbeddingStore, pipeline: PixelPipeline, records: Mapping[str, ImageRecord]) -> OwnSamples:
    """Return the photographs of a store that gates use; see `EmbedPlan.samples`."""
    gated = {entry.name: entry.facts["runtime"] for entry in store.backbones() if entry.facts.get("gate")}
    policies = {name: PrecisionPolicy.of(made) for name, made in gated.items() if pipeline.target.made(made)}
    return _samples(pipeline, records, store.calibration, policies)


def _samples(
    pipeline: PixelPipeline,
    records: Mapping[str, ImageRecord],
    keys: Sequence[str],
    policies: Mapping[str, PrecisionPolicy],
) -> OwnSamples:
    count = GATE_IMAGES if pipeline.config.gate == "full" else SPOT_PICTURES
    return OwnSamples(pipeline, records, keys[: 2 * count], count, policies)


def added(
    records: Sequence[ImageRecord], source: Source, manifest: Manifest | None, *, seed: int, fractions: Fractions
) -> tuple[list[ImageRecord], list[str], NDArray[np.int64], NDArray[np.int8]]:
    """Return the photographs of a source that a store lacks, all class names, and their labels and splits.

    Args:
        manifest: of the store, if there is any. Its classes keep their labels; new ones with photographs follow.
    """
    keys, names = (set(manifest.keys), list(manifest.class_names)) if manifest else (set(), [])
    new = [record for record in records if record.key not in keys]
    classes = source.class_names
    taken = {classes[record.label] for record in new if record.label is not None}
    known = set(names)
    names += [name for name in classes if name in taken and name not in known]
    number = {name: i for i, name in enumerate(names)}
    labels = [UNLABELLED if record.label is None else number[classes[record.label]] for record in new]
    split_N = assign(
        [record.key for record in new],
        labels,
        [record.split for record in new],
        seed=seed,
        fractions=fractions,
        source={record.split for record in records},
        groups=[record.group for record in new],
    )
    return new, names, np.array(labels, np.int64), split_N


def _found(records: Sequence[ImageRecord], keys: Iterable[str]) -> Iterator[ImageRecord | None]:
    """Find keys, most of which follow each other, without a dictionary of all records."""
    place = 0
    for key in keys:
        if place == len(records) or records[place].key != key:
            place = bisect_left(records, key, key=lambda record: record.key)
        found = records[place] if place < len(records) else None
        if found is None or found.key != key:
            yield None
        else:
            yield found
            place += 1


def limited(records: Sequence[ImageRecord], seed: int, limit: int) -> list[ImageRecord]:
    """Sample photographs, keeping the shares of splits and cycling through classes in one order for all splits.

    A class with a photograph in every split is then trained if it is tested, and larger samples contain smaller ones.
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


Lacking = Sequence[Sequence[str]]  # missing transformations of a shard for each backbone


@dataclass(frozen=True)
class ShardTask:
    """K photographs of a shard, and what it lacks; all that a worker needs to know of the store's photographs.

    Attributes:
        number, first: of the shard, and its first row.
        lacking: missing transformations of each backbone.
        row_K: rows in the shard; test_K: whether a photograph is of the test split.
        keys: keys of the photographs.
        records: the photographs; None for one that is no longer in a source.
        noted: what earlier passes noted, whether a photograph is valid (K,) and its content (K, 2); likewise, by
            transformation, of the files that show it in a real one.
    """

    number: int
    first: int
    lacking: Lacking
    row_K: NDArray[np.int64]
    keys: Sequence[str]
    test_K: NDArray[np.bool_]
    records: Sequence[ImageRecord | None]
    noted: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.uint64]]]

    @property
    def rows(self) -> int:
        """r, the number of rows up to the last photograph."""
        return int(self.row_K[-1]) + 1


@dataclass(frozen=True)
class PendingShards:
    """Pending work of a part of a store: shards with missing embeddings.

    Attributes:
        images: number of photographs of the store.
        shards: number of shards of the store.
        names: the T transformations.
        shard_W: ascending numbers of the shards with missing embeddings.
        size_W: number of photographs of each.
        lacking_WBT: whether the embeddings of a shard, backbone and transformation are missing.
        total: number of embeddings of the finished part.
        done: number of existing embeddings.
    """

    images: int
    shards: int
    names: tuple[str, ...]
    shard_W: NDArray[np.int64]
    size_W: NDArray[np.int64]
    lacking_WBT: NDArray[np.bool_]
    total: int
    done: int

    def split(self, images: int) -> tuple[PendingShards, PendingShards]:
        """A few shards, spread over all, with about so many photographs, and the others."""
        count = len(self.shard_W)
        wanted = min(math.ceil(images * count / max(int(self.size_W.sum()), 1)), count)
        few_W = np.zeros(count, np.bool_)
        few_W[np.arange(wanted) * count // max(wanted, 1)] = True
        few, rest = (
            replace(self, shard_W=self.shard_W[W], size_W=self.size_W[W], lacking_WBT=self.lacking_WBT[W])
            for W in (few_W, ~few_W)
        )
        made = int((few.size_W * np.count_nonzero(few.lacking_WBT, axis=(1, 2))).sum())
        return few, replace(rest, done=self.done + made)

    @cached_property
    def lacking(self) -> dict[int, Lacking]:
        """Missing transformations by shard number, in order, without complete shards."""

        @cache  # a store of 10^9 photographs has a hundred thousand shards, and most lack the same
        def named(lacking: bytes) -> Lacking:
            lacking_BT = np.frombuffer(lacking, np.bool_).reshape(-1, len(self.names))
            return [[self.names[t] for t in np.flatnonzero(lacks_T)] for lacks_T in lacking_BT]

        return {int(shard): named(lacks.tobytes()) for shard, lacks in zip(self.shard_W, self.lacking_WBT, strict=True)}

    @cached_property
    def sizes(self) -> dict[int, int]:
        """Number of photographs by shard number."""
        return dict(zip(self.shard_W.tolist(), self.size_W.tolist(), strict=True))


def pending_shards(
    store: EmbeddingStore, entries: Sequence[BackboneEntry], names: Sequence[str], part: Part
) -> PendingShards:
    """Find the missing embeddings of these backbones and transformations in all shards of a part."""
    size_S = store.manifest().shard_sizes(store.settings.shard_rows)
    return lacking(size_S, store.finished(), [entry.slug for entry in entries], names, part)


def lacking(
    size_S: NDArray[np.int64], finished: Index, slugs: Sequence[str], names: Sequence[str], part: Part
) -> PendingShards:
    """`pending_shards` from the numbers of photographs of all shards and a journal's index.

    Args:
        finished: index of the journal.
        slugs: slugs of the B backbones.
        names: the T transformations.
    """
    images, count = int(size_S.sum()), len(size_S)
    shards = part.shards(count)
    mine = slice(shards.start, shards.stop, shards.step)
    shard_S, size_S = np.arange(count, dtype=np.int64)[mine], size_S[mine]
    lacking_SBT = ~np.stack([finished.finished(slug, names, count)[mine] for slug in slugs], axis=1)
    missing_S = np.count_nonzero(lacking_SBT, axis=(1, 2))
    some_S = (missing_S > 0) & (size_S > 0)  # a shard may have lost all its photographs
    total = int(size_S.sum()) * len(names) * len(slugs)
    return PendingShards(
        images=images,
        shards=count,
        names=tuple(names),
        shard_W=shard_S[some_S],
        size_W=size_S[some_S],
        lacking_WBT=lacking_SBT[some_S],
        total=total,
        done=total - int((size_S * missing_S).sum()),
    )
