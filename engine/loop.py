"""The embedding loop: shards of photographs → canvases → variants → embeddings → store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.plan import EmbedPlan
from substyle.engine.progress import Bar, stage
from substyle.engine.store import duplicates, journal
from substyle.engine.store.embeddings import BackboneEntry, EmbeddingStore
from substyle.engine.table import TEST
from substyle.pipelines.sources import ImageRecord

_READERS = 4  # files read ahead at once; reading waits on disks, not on cores


@dataclass
class EmbedSummary:
    """What one call of `embed` did.

    Attributes:
        images: photographs of the store; variants: photographs × transformations.
        shards: of the store; new_shards: finished by this call.
        quarantined: images that could not be decoded, with reasons (those met in this call).
        seconds: wall time by stage: prepare, read, decode, variants, backbones, store, total.
    """

    images: int = 0
    variants: int = 0
    shards: int = 0
    new_shards: int = 0
    quarantined: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def spend(self, what: str, since: float) -> float:
        """Add the time since ``since`` to a stage; returns now."""
        now = time.perf_counter()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - since
        return now


class Loop:
    """One run over the shards of a store that have something to do."""

    def __init__(
        self,
        store: EmbeddingStore,
        plan: EmbedPlan,
        entries: Sequence[BackboneEntry],
        compiled: Sequence[CompiledBackbone],
        summary: EmbedSummary,
        run: str,
    ) -> None:
        self.store, self.plan, self.workshop, self.summary = store, plan, plan.workshop, summary
        self.records = {record.key: record for record in plan.source.records}
        self.entries, self.compiled, self.run_id = entries, compiled, run
        self.manifest = store.manifest()

    def run(self, *, quiet: bool) -> None:
        """All shards that have something to do, in order."""
        names = self.workshop.settings.transformations
        finished = self.store.finished()
        summary = self.summary
        summary.images, summary.shards = len(self.manifest.keys), self.store.shards()
        summary.variants = summary.images * len(names)
        todo: dict[int, list[list[str]]] = {}
        total = done = 0
        for shard in range(summary.shards):
            size = len(self._images(shard))
            lacking = [
                [name for name in names if name not in finished.get((shard, entry.slug), set())]
                for entry in self.entries
            ]
            missing = sum(map(len, lacking))
            total += size * len(names) * len(self.entries)
            done += size * (len(names) * len(self.entries) - missing)
            if missing:
                todo[shard] = lacking
        with (
            stage(self.plan.title, total, "embeddings", done=done, quiet=quiet) as bar,
            ThreadPoolExecutor(_READERS) as readers,
        ):
            for shard, lacking in todo.items():
                self._shard(shard, lacking, bar, readers)
                summary.new_shards += 1
                journal.compact(self.store.path)

    def _images(self, shard: int) -> range:
        rows = self.store.settings.shard_rows
        part = self.manifest.between(shard * rows, (shard + 1) * rows)
        return range(part.start, part.stop)

    def _shard(self, shard: int, lacking: Sequence[Sequence[str]], bar: Bar, readers: ThreadPoolExecutor) -> None:
        began = time.perf_counter()
        first = shard * self.store.settings.shard_rows
        images = self._images(shard)
        size = int(self.manifest.row_N[images[-1]]) + 1 - first
        buffers = [
            {name: np.full((size, entry.dim), np.nan, np.float32) for name in names}
            for entry, names in zip(self.entries, lacking, strict=True)
        ]
        wanted = [name for name in self.workshop.settings.transformations if any(name in names for names in lacking)]
        notes: list[journal.ImageNote] = []
        for part, blobs in self._batches(images, readers):
            notes += self._batch(part, blobs, wanted, buffers, first, bar)
        clock = time.perf_counter()
        involved = [(e, b) for e, b in zip(self.entries, buffers, strict=True) if b]
        for entry, embeddings in involved:
            seconds = (clock - began) / len(involved)
            self.store.write_shard(entry, shard, embeddings, notes, seconds=seconds, run=self.run_id)
        self.summary.spend("store", clock)

    def _batches(self, images: range, readers: ThreadPoolExecutor) -> Iterator[tuple[range, list[bytes | OSError]]]:
        """Batches from the shard's first image on, the next one's files being read meanwhile."""
        batch = self.workshop.config.batch
        parts = [images[i : i + batch] for i in range(0, len(images), batch)]

        def ask(part: range) -> list[Future[bytes | OSError]]:
            return [readers.submit(_read, self.records.get(self.manifest.keys[i])) for i in part]

        waiting = ask(parts[0])
        for i, part in enumerate(parts):
            clock = time.perf_counter()
            blobs = [future.result() for future in waiting]
            if i + 1 < len(parts):
                waiting = ask(parts[i + 1])
            self.summary.spend("read", clock)
            yield part, blobs

    def _batch(
        self,
        part: range,
        blobs: Sequence[bytes | OSError],
        wanted: Sequence[str],
        buffers: Sequence[Mapping[str, NDArray[np.float32]]],
        first: int,
        bar: Bar,
    ) -> list[journal.ImageNote]:
        keys = [self.manifest.keys[i] for i in part]
        rows = self.manifest.row_N[part.start : part.stop] - first
        clock = time.perf_counter()
        decoded = self.workshop.decoder([b"" if isinstance(blob, OSError) else blob for blob in blobs])
        reasons = [
            f"cannot be read: {blob.strerror or blob}" if isinstance(blob, OSError) else reason
            for blob, reason in zip(blobs, decoded.reasons, strict=True)
        ]
        small = duplicates.thumbnails(decoded.canvas_BSSC)
        indistinct: list[list[str]] = [[] for _ in part]
        clock = self.summary.spend("decode", clock)
        test_B = self.manifest.split_N[part.start : part.stop] == TEST
        for variant in self.workshop.maker(wanted)(decoded.canvas_BSSC, keys, test_B):
            pixels = variant.pixels_BSSC.numpy()
            for i in torch.nonzero(~variant.distinct_B).flatten().tolist():
                indistinct[i].append(variant.name)
            clock = self.summary.spend("variants", clock)
            for backbone, buffer in zip(self.compiled, buffers, strict=True):
                if variant.name in buffer:
                    embedded = backbone.embed(pixels)
                    buffer[variant.name][rows[decoded.ok_B]] = embedded[decoded.ok_B]
                    bar.advance(len(part))
            clock = self.summary.spend("backbones", clock)
        notes = []
        for i, row in enumerate(self.manifest.row_N[part.start : part.stop].tolist()):
            height, width = (int(v) for v in decoded.size_B2[i])
            reason = reasons[i]
            if reason is not None:
                self.summary.quarantined[keys[i]] = reason
                notes.append(journal.ImageNote(row, height, width, reason, "", ()))
            else:
                notes.append(journal.ImageNote(row, height, width, "", small[i], tuple(indistinct[i])))
        return notes


def _read(record: ImageRecord | None) -> bytes | OSError:
    if record is None:
        return FileNotFoundError(2, "the source has it no longer")
    try:
        return record.read()
    except OSError as error:
        return error
