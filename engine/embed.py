"""The embedding loop: shards of photographs → canvases → variants → embeddings → store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.preparation import (
    BackboneChoice,
    EmbedConfig,
    Samples,
    Settings,
    Workshop,
    calibration_keys,
    prepare_backbones,
    shard_rows,
)
from substyle.engine.progress import Bar, stage
from substyle.engine.store import duplicates, journal, lock
from substyle.engine.store.embeddings import BackboneEntry, EmbeddingStore, StoreError, StoreSettings, new_run_id
from substyle.engine.store.load import store_facts
from substyle.engine.store.manifest import Manifest
from substyle.engine.store.splits import DEFAULT_FRACTIONS, Fractions, assign
from substyle.engine.table import TEST, UNLABELLED
from substyle.kernels.errors import ConfigError
from substyle.kernels.philox import image_keys
from substyle.pipelines.sources import ImageRecord, Source
from substyle.pipelines.transforms import base

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
    """

    source: Source
    store_path: Path
    workshop: Workshop
    limit: int = 0
    fractions: Fractions = DEFAULT_FRACTIONS
    title: str = "embed"

    @property
    def exists(self) -> bool:
        """Whether the store is there already."""
        return (self.store_path / "zarr.json").is_file()

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


def embed(plan: EmbedPlan, backbones: Sequence[BackboneChoice], *, quiet: bool = False) -> EmbedSummary:
    """Embed every variant of every photograph by every backbone; what the store has already is not redone.

    Raises:
        ConfigError, StoreError, LockedError, WeightsError, GateError, OverflowError16: as their messages say; finished
            shards are kept in every case.
    """
    if not backbones:
        raise ConfigError("backbones", "none", "at least one backbone")
    start = time.perf_counter()
    done = _complete(plan, [choice.name for choice in backbones])
    if done is not None:
        return done
    compiled = prepare_backbones(backbones, plan.samples(), quiet=quiet)
    prepared = time.perf_counter()
    summary = embed_compiled(plan, compiled, quiet=quiet)
    summary.seconds["prepare"] = prepared - start
    summary.seconds["total"] = time.perf_counter() - start
    return summary


def embed_compiled(plan: EmbedPlan, compiled: Sequence[CompiledBackbone], *, quiet: bool = False) -> EmbedSummary:
    """`embed` for backbones that are compiled and gated already."""
    settings, config = plan.workshop.settings, plan.workshop.config
    summary = EmbedSummary()
    start = time.perf_counter()
    records = plan.records()
    if plan.exists:
        store = EmbeddingStore.open(plan.store_path, writable=True)
        _require_same(store, settings, config)
    else:
        rows = shard_rows(compiled, len(settings.transformations), len(records), config)
        made = StoreSettings(settings.seed, settings.canvas, rows, config.dtype, plan.source.root)
        store = EmbeddingStore.create(plan.store_path, made, calibration=calibration_keys(records, settings.seed))
    run = new_run_id()
    with lock.hold(plan.store_path, run):
        _add_missing(store, records, plan.source.class_names, settings.seed, plan.fractions)
        entries = [store.ensure_backbone(_facts(backbone)) for backbone in compiled]
        for entry in entries:
            for name in settings.transformations:
                transformation = base.get(name)
                store.ensure_transformation(entry, transformation.describe(), transformation.definition_hash())
        loop = _Loop(store, plan, entries, compiled, summary, run)
        loop.run(quiet=quiet)
        journal.compact(plan.store_path, at=1)
    summary.spend("total", start)
    return summary


def _complete(plan: EmbedPlan, backbones: Sequence[str]) -> EmbedSummary | None:
    """The summary of a store that has everything already, None where something is to do."""
    if not plan.exists:
        return None
    store = EmbeddingStore.open(plan.store_path)
    settings = plan.workshop.settings
    _require_same(store, settings, plan.workshop.config)
    if not store.has_manifest():
        return None
    there = {entry.name: entry.slug for entry in store.backbones()}
    finished = store.finished()
    keys = set(store.manifest().keys)
    names = set(settings.transformations)
    shards = store.shards()
    if not all(record.key in keys for record in plan.records()):
        return None
    for name in backbones:
        if name not in there or not all(names <= finished.get((s, there[name]), set()) for s in range(shards)):
            return None
        entry = store.backbone(name)
        for transformation in settings.transformations:
            known = base.get(transformation)
            store.ensure_transformation(entry, known.describe(), known.definition_hash())
    return EmbedSummary(len(keys), len(keys) * len(names), shards, quarantined=store_facts(store).quarantined)


class _Loop:
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


def _limited(records: Sequence[ImageRecord], seed: int, limit: int) -> list[ImageRecord]:
    if limit <= 0 or limit >= len(records):
        return list(records)
    order = np.argsort(image_keys(seed, [f"limit:{record.key}" for record in records]))
    return [records[i] for i in sorted(order[:limit].tolist())]


def _require_same(store: EmbeddingStore, settings: Settings, config: EmbedConfig) -> None:
    there = store.settings
    pairs = {
        "seed": (there.seed, settings.seed),
        "canvas": (there.canvas, settings.canvas),
        "dtype": (there.dtype, config.dtype),
    }
    changed = [f"{name} {old} there, {new} now" for name, (old, new) in pairs.items() if old != new]
    if changed:
        raise StoreError(f"{store.path}: the store was made differently: {'; '.join(changed)}")


def _add_missing(
    store: EmbeddingStore, records: Sequence[ImageRecord], class_names: Sequence[str], seed: int, fractions: Fractions
) -> None:
    known: Manifest | None = store.manifest() if store.has_manifest() else None
    there = set(known.keys) if known else set()
    new = [record for record in records if record.key not in there]
    if not new:
        return
    # classes keep the labels that earlier segments gave them; new ones come after
    names = list(known.class_names) if known else []
    names += [name for name in class_names if name not in names]
    labels = [UNLABELLED if r.label is None else names.index(class_names[r.label]) for r in new]
    split_N = assign([r.key for r in new], labels, [r.split for r in new], seed=seed, fractions=fractions)
    store.add_images([r.key for r in new], np.array(labels, np.int64), names, split_N)


def _facts(backbone: CompiledBackbone) -> dict[str, object]:
    return {
        "name": backbone.spec.name,
        "dim": backbone.spec.dim,
        "spec": backbone.spec.describe(),
        "runtime": backbone.runtime,
        "gate": backbone.gate,
        "rate": round(backbone.rate, 2),
    }
