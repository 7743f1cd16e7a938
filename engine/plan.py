"""What is embedded and where to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from substyle.engine.executors.config import HERE, ExecutorConfig
from substyle.engine.samples import Samples, calibration_keys
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.layout import METADATA
from substyle.engine.store.lock import WHOLE, Part
from substyle.engine.store.splits import DEFAULT_FRACTIONS, Fractions
from substyle.engine.workshop import Workshop
from substyle.kernels.philox import image_keys
from substyle.pipelines.places import Place
from substyle.pipelines.sources import ImageRecord, Source


@dataclass(frozen=True)
class EmbedPlan:
    """What is embedded and where to.

    Attributes:
        source: the photographs. A store that exists is grown by those it has not got.
        store_path: where the store is or will be.
        workshop: settings and tools.
        limit: take only so many photographs, chosen by hash and so the same ones each time; 0 takes all.
        fractions: shares of train, val and test where the source has no splits of its own.
        title: what progress calls it.
        part: which shards this process does where several fill one store.
        take_over: take over locks of runs on other hosts, which have ended.
        executor: where they are embedded.
    """

    source: Source
    store_path: Place
    workshop: Workshop
    limit: int = 0
    fractions: Fractions = DEFAULT_FRACTIONS
    title: str = "embed"
    part: Part = WHOLE
    take_over: bool = False
    executor: ExecutorConfig = HERE

    @property
    def exists(self) -> bool:
        """Whether the store is there already."""
        return (self.store_path / METADATA).is_file()

    def records(self) -> list[ImageRecord]:
        """The photographs to take."""
        return _limited(self.source.records, self.workshop.settings.seed, self.limit)

    def samples(self) -> Samples:
        """The photographs that gates and recalibrations look at: those of the store, or of the source for a new one."""
        if self.exists:
            keys = EmbeddingStore.open(self.store_path).calibration()
        else:
            keys = calibration_keys(self.records(), self.workshop.settings.seed)
        return Samples(self.workshop, {record.key: record for record in self.source.records}, keys)


def _limited(records: Sequence[ImageRecord], seed: int, limit: int) -> list[ImageRecord]:
    if limit <= 0 or limit >= len(records):
        return list(records)
    order = np.argsort(image_keys(seed, [f"limit:{record.key}" for record in records]))
    return [records[i] for i in sorted(order[:limit].tolist())]
