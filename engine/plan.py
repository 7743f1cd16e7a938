"""What is embedded and where to."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from substyle.engine import identity
from substyle.engine.executors.config import HERE, ExecutorConfig
from substyle.engine.identity import EMBED, Match, Ways
from substyle.engine.precision import AUTO
from substyle.engine.samples import Samples, calibration_keys
from substyle.engine.store import header
from substyle.engine.store.catalog import Definition
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.lock import WHOLE, Part
from substyle.engine.store.manifest import SourceEntry
from substyle.engine.store.splits import DEFAULT_FRACTIONS, Fractions
from substyle.engine.workshop import Workshop
from substyle.kernels.errors import ConfigError
from substyle.kernels.philox import image_keys
from substyle.pipelines.places import Place
from substyle.pipelines.sources import ImageRecord, Source
from substyle.pipelines.transforms import base


@dataclass(frozen=True)
class EmbedPlan:
    """What is embedded and where to.

    Attributes:
        source: the photographs. A store that exists is grown by those that it lacks.
        store_path: where the store is or will be.
        workshop: settings and tools.
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
    workshop: Workshop
    limit: int = 0
    fractions: Fractions | None = None
    title: str = "embed"
    part: Part = WHOLE
    take_over: bool = False
    executor: ExecutorConfig = HERE
    add: bool = False
    replace: bool = False
    only: bool = False
    ways: Ways = EMBED
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
        return header.exists(self.store_path)

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
        return _limited(self.source.records, self.workshop.settings.seed, self.limit)

    def readable(self) -> dict[str, ImageRecord]:
        """The photographs of all sources, by key."""
        sources = (self.source, *self.others)
        return {record.key: record for record in chain.from_iterable(source.records for source in sources)}

    def definitions(self) -> list[Definition]:
        """The transformations that every backbone is to have."""
        known = map(base.get, self.workshop.settings.transformations)
        return [Definition(each.describe(), each.definition_hash()) for each in known]

    def splits(self) -> Fractions:
        """Shares of train, val and test for photographs that are added."""
        return self.fractions or DEFAULT_FRACTIONS

    def samples(self) -> Samples:
        """The photographs that gates and recalibrations look at: those of the store, or of the source for a new one."""
        if self.exists:
            keys: Sequence[str] = EmbeddingStore.open(self.store_path).calibration
        else:
            keys = calibration_keys(self.records(), self.workshop.settings.seed)
        return Samples(self.workshop, self.readable(), keys)


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
