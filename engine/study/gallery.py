"""The gallery of a report: a few photographs in all variants."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from substyle.engine import cache
from substyle.engine.config import Settings, Study
from substyle.engine.store.files import remove
from substyle.engine.store.layout import TEST
from substyle.engine.store.records import content_hash
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, store_facts
from substyle.engine.study.outputs import StaleError, Stamp, finish, fits, note_of
from substyle.engine.style_transfer.networks import networks_for
from substyle.kernels.philox import image_keys
from substyle.pipelines.sources import ImageRecord, Source
from substyle.pipelines.transforms import base
from substyle.pipelines.variants import variants_of

GALLERY = "gallery"
_CANDIDATES = 8  # photographs read per photograph of the gallery


def draw_gallery(source: Source, study: Study, store: EmbeddingStore, out: Path) -> None:
    """Draw variants of a few photographs of the store, the most detailed of a seeded choice, for the report."""
    quarantined = store_facts(store).quarantined
    valid = set(store.manifest().keys) - set(quarantined)
    valid_records = [record for record in source.records if record.key in valid]
    order = np.argsort(image_keys(study.seed, [f"gallery:{record.key}" for record in valid_records]))
    candidates = list(islice(_readable(valid_records[i] for i in order.tolist()), _CANDIDATES * study.gallery))
    # photographs with much detail compress badly, and show what transformations do
    chosen = sorted(candidates, key=lambda record: len(record.read()), reverse=True)[: study.gallery]
    if chosen:
        _draw(store, chosen, out, study.settings(), threads=study.embed.cores)


def _readable(records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
    """Records that are still readable, with their bytes; the source may have changed since embedding."""
    for record in records:
        try:
            data = record.read()
        except OSError:
            continue
        yield replace(record, read=partial(bytes, data))


def _draw(
    store: EmbeddingStore, records: Sequence[ImageRecord], out: Path, settings: Settings, *, threads: int
) -> Path:
    """Write variants of photographs to ``out/gallery/<number>/<transformation>.png``."""
    folder = out / GALLERY
    blobs = [record.read() for record in records]
    stamp = _stamp(store, [(r.key, content_hash(blob)) for r, blob in zip(records, blobs, strict=True)], settings)
    if fits(folder, stamp):
        return folder
    remove(folder)
    networks = networks_for(
        settings.transformations, side=settings.canvas, threads=threads, precision=settings.style_precision
    )
    manifest = store.manifest()
    test = {manifest.keys[n] for n in np.flatnonzero(manifest.split_N == TEST)}
    began = time.perf_counter()
    for number, (record, blob) in enumerate(zip(records, blobs, strict=True)):
        made = variants_of(
            blob,
            settings.transformations,
            key=record.key,
            side=settings.canvas,
            seed=settings.seed,
            threads=threads,
            networks=networks,
            orientation=settings.orientation,
            test=record.key in test,
        )
        place = folder / str(number)
        place.mkdir(parents=True, exist_ok=True)
        for name, pixels in made.items():
            Image.fromarray(pixels).save(place / f"{name}.png")
    finish(folder, stamp, time.perf_counter() - began)
    return folder


def _stamp(store: EmbeddingStore, photographs: Sequence[tuple[str, str]], settings: Settings) -> Stamp:
    """Stamp of a gallery; photographs are (key, content hash)."""
    chosen = {"photographs": [list(pair) for pair in sorted(photographs)]}
    return Stamp(
        store.uuid,
        hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:16],
        {name: base.get(name).definition_hash() for name in settings.transformations},
        "",
        json.loads(json.dumps(asdict(settings))) | chosen,
        cache.code_hash(),
    )


def current_gallery(store: EmbeddingStore, out: Path, table: EmbeddingTable) -> Path | None:
    """The gallery folder if its pictures match the photographs and transformations of a table, else None."""
    folder = out / GALLERY
    try:
        note = note_of(folder)
    except StaleError as error:
        print(f"{error}; omitting the gallery", file=sys.stderr)
        return None
    if note is None:
        return None
    known = store.catalog.transformations[store.backbone(table.backbone).slug]
    content_of = dict(zip(table.keys, table.contents, strict=True))
    wanted = {name: known[name].hash for name in table.transformations}
    shown = note.stamp.settings.get("photographs", [])
    current = note.stamp.store == store.uuid and note.stamp.transformations == wanted
    return folder if current and all(content_of.get(key) == content for key, content in shown) else None
