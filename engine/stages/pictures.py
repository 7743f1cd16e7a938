"""Pictures of photographs in their variants: the gallery of a report, and single ones as they were embedded."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from substyle.engine.config import EmbedConfig, Settings, Study
from substyle.engine.embedding.blobs import read
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.variants import batches
from substyle.engine.stages.stamp import NOTE, StaleError, Stamp, compute_into, fits, note_of
from substyle.engine.store import identity
from substyle.engine.store.catalog import Definition
from substyle.engine.store.journal import hex_of
from substyle.engine.store.layout import TEST
from substyle.engine.store.records import content_hash
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, store_facts
from substyle.engine.style_transfer.networks import networks_for
from substyle.errors import SubstyleError
from substyle.kernels.philox import image_keys
from substyle.pipelines.sources import ImageRecord, Source
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all
from substyle.pipelines.variants import variants_of

GALLERY = "gallery"
VERSION = 1  # increment when other pictures are drawn
_HERE = EmbedConfig(device="cpu")  # which draws pictures of stores of any device
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
    contents = [(r.key, content_hash(blob)) for r, blob in zip(records, blobs, strict=True)]
    shown = base.real(settings.transformations)
    real = [{name: blob.data for name in shown if (blob := read(record.variant(name))).data} for record in records]
    files = [
        (name, r.key, content_hash(data)) for r, own in zip(records, real, strict=True) for name, data in own.items()
    ]

    def compute(new: Path) -> None:
        networks = networks_for(
            settings.transformations, side=settings.canvas, threads=threads, precision=settings.style_precision
        )
        manifest = store.manifest()
        test = {manifest.keys[n] for n in np.flatnonzero(manifest.split_N == TEST)}
        for number, (record, blob, own) in enumerate(zip(records, blobs, real, strict=True)):
            made = variants_of(
                blob,
                settings.transformations,
                key=record.key,
                side=settings.canvas,
                seed=settings.seed,
                threads=threads,
                networks=networks,
                orientation=settings.orientation,
                crop_pct=settings.crop_pct,
                test=record.key in test,
                real=own,
            )
            (new / str(number)).mkdir()
            for name, pixels in made.items():
                Image.fromarray(pixels).save(new / str(number) / f"{name}.png")

    stamp = partial(_stamp, store, contents, files, settings)
    if not fits(folder, before := stamp()):
        compute_into(folder, before, stamp, compute)
    return folder


def _stamp(
    store: EmbeddingStore,
    photographs: Sequence[tuple[str, str]],
    files: Sequence[tuple[str, str, str]],
    settings: Settings,
) -> Stamp:
    """Stamp of a gallery; photographs are (key, content hash), files (real transformation, key, content hash)."""
    now = PixelPipeline(settings, _HERE).definitions
    chosen = {"photographs": [list(pair) for pair in sorted(photographs)]}
    if files:
        chosen["files"] = [list(each) for each in sorted(files)]
    return Stamp(
        store.uuid,
        hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:16],
        {name: _drawn(store, made) for name, made in zip(settings.transformations, now, strict=True)},
        "",
        json.loads(json.dumps(asdict(settings))) | chosen,
        f"gallery {VERSION}",
    )


def _drawn(store: EmbeddingStore, now: Definition) -> str:
    """Hash of a transformation of a store, as it is there unless it has changed."""
    stored = (made.get(now.name) for made in store.catalog.transformations.values())
    found = next((made for made in stored if made is not None), None)
    return found.hash if found is not None and not found.difference(now, store.path) else now.hash


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
    listed = {*note.files, NOTE}
    for path in folder.rglob("*"):
        if (path.is_symlink() or not path.is_dir()) and path.relative_to(folder).as_posix() not in listed:
            print(f"{path}: not of the gallery; omitting the gallery", file=sys.stderr)
            return None
    known = store.catalog.transformations[store.backbone(table.backbone).slug]
    content_of = dict(zip(table.keys, table.contents, strict=True))
    wanted = {name: known[name].hash for name in table.transformations}
    shown, files = (note.stamp.settings.get(each, []) for each in ("photographs", "files"))
    current = note.stamp.store == store.uuid and note.stamp.transformations == wanted
    current = current and all(content_of.get(key) == content for key, content in shown)
    if files and current:
        of_file = file_contents(store)
        current = all(of_file[name].get(key) == content for name, key, content in files)
    return folder if current else None


def file_contents(store: EmbeddingStore) -> Mapping[str, Mapping[str, str]]:
    """Content hashes of the files that show photographs of a store in real transformations: by name, then by key."""
    manifest = store.manifest()
    files = store.notes(manifest).files
    return defaultdict(
        dict, {name: dict(zip(manifest.keys, hex_of(own.content_N2), strict=True)) for name, own in files.items()}
    )


def current_variants(
    store: EmbeddingStore, table: EmbeddingTable, n_M: NDArray[np.int64], transformations: Sequence[str]
) -> Iterator[tuple[str, str, NDArray[np.uint8]]]:
    """Draw variants of M photographs as they were embedded; yields transformation, key and pixels (S, S, 3).

    Photographs that are gone or have changed are left out; all are if the store does not know its photographs, or a
    transformation has changed.
    """
    load_all()
    manifest, settings = store.manifest(), store.settings
    known = store.catalog.transformations[store.backbone(table.backbone).slug]
    try:
        whole = PixelPipeline(Settings(transformations=tuple(known), **settings.pixels), _HERE)
        store.require_definitions(whole.definitions)
        sources = [identity.open_recorded(store, entry) for entry in manifest.sources]
    except (SubstyleError, OSError) as error:
        print(f"no thumbnails: {error}", file=sys.stderr)
        return
    records = {record.key: record for source in sources for record in source.records}
    split_of = dict(zip(manifest.keys, manifest.split_N.tolist(), strict=True))
    contents = table.contents
    of_file = file_contents(store)

    def unchanged(n: int) -> bool:
        record, key = records.get(table.keys[n]), table.keys[n]
        return (
            record is not None
            and contents[n] in ("", read(record).content)
            and all(
                of_file[name].get(key, "") == read(record.variant(name)).content for name in base.real(transformations)
            )
        )

    keys = [table.keys[n] for n in n_M.tolist() if unchanged(n)]
    chosen = Settings(transformations=tuple(transformations), **settings.pixels)
    split_N = np.array([split_of[key] for key in keys], np.int8)
    pipeline = PixelPipeline(chosen, EmbedConfig())
    for batch in batches([records[key] for key in keys], split_N, pipeline, lambda key, reason: None):
        for record, pixels in zip(batch.records, batch.pixels_BSSC, strict=True):
            yield batch.transformation, record.key, pixels
