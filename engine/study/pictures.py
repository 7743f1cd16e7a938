"""Pictures of a report: a gallery of a few photographs in all variants, and the most confident mistakes of probes."""

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
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from substyle.engine import cache
from substyle.engine.config import EmbedConfig, Settings, Study
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.variants import batches
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.report.data import HEADS
from substyle.engine.store import identity
from substyle.engine.store.catalog import Definition
from substyle.engine.store.files import read_object, write_durably
from substyle.engine.store.layout import TEST
from substyle.engine.store.records import content_hash
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, store_facts
from substyle.engine.study.outputs import MISTAKES, NOTE, StaleError, Stamp, finish, fits, note_of, replacing
from substyle.engine.study.stages import PROBES
from substyle.engine.style_transfer.networks import networks_for
from substyle.kernels.errors import SubstyleError
from substyle.kernels.philox import image_keys
from substyle.pipelines.sources import ImageRecord, Source
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all
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
    networks = networks_for(
        settings.transformations, side=settings.canvas, threads=threads, precision=settings.style_precision
    )
    manifest = store.manifest()
    test = {manifest.keys[n] for n in np.flatnonzero(manifest.split_N == TEST)}
    began = time.perf_counter()
    with replacing(folder) as new:
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
            (new / str(number)).mkdir()
            for name, pixels in made.items():
                Image.fromarray(pixels).save(new / str(number) / f"{name}.png")
        finish(new, stamp, time.perf_counter() - began)
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
    listed = {*note.files, NOTE}
    for path in folder.rglob("*"):
        if (path.is_symlink() or not path.is_dir()) and path.relative_to(folder).as_posix() not in listed:
            print(f"{path}: not of the gallery; omitting the gallery", file=sys.stderr)
            return None
    known = store.catalog.transformations[store.backbone(table.backbone).slug]
    content_of = dict(zip(table.keys, table.contents, strict=True))
    wanted = {name: known[name].hash for name in table.transformations}
    shown = note.stamp.settings.get("photographs", [])
    current = note.stamp.store == store.uuid and note.stamp.transformations == wanted
    return folder if current and all(content_of.get(key) == content for key, content in shown) else None


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
        store.require_definitions([Definition(d.describe(), d.definition_hash()) for d in map(base.get, known)])
        sources = [identity.open_recorded(store, entry) for entry in manifest.sources]
    except (SubstyleError, OSError) as error:
        print(f"no thumbnails: {error}", file=sys.stderr)
        return
    records = {record.key: record for source in sources for record in source.records}
    split_of = dict(zip(manifest.keys, manifest.split_N.tolist(), strict=True))
    contents = table.contents
    keys = [
        table.keys[n]
        for n in n_M.tolist()
        if (record := records.get(table.keys[n])) and contents[n] in ("", _content(record))
    ]
    chosen = Settings(
        settings.seed, settings.canvas, tuple(transformations), settings.orientation, settings.style_precision
    )
    split_N = np.array([split_of[key] for key in keys], np.int8)
    pipeline = PixelPipeline(chosen, EmbedConfig())
    for batch in batches([records[key] for key in keys], split_N, pipeline, lambda key, reason: None):
        for record, pixels in zip(batch.records, batch.pixels_BSSC, strict=True):
            yield batch.transformation, record.key, pixels


def _content(record: ImageRecord) -> str | None:
    """Content hash of a photograph; None if it cannot be read."""
    try:
        return content_hash(record.read())
    except OSError:
        return None


SHOWN = 6  # of each probe
_FILE = "mistakes.json"
_CHUNK = 4096  # rows predicted at once


def most_confident(probe: Probe, table: EmbeddingTable, transformations: Sequence[int], shown: int) -> dict[str, Any]:
    """List test variants that a probe of one task gets most confidently wrong; equal confidences in table order.

    Args:
        transformations: indices of the transformations.
        shown: maximum number of variants.

    Returns:
        ``{"head", "scored", "wrong", "rows"}``: numbers of scored and of wrong test variants, and the list.
    """
    test_N = table.rows(TEST)
    t_R, n_R = np.repeat(np.asarray(transformations), len(test_N)), np.tile(test_N, len(transformations))
    scored = wrong = 0
    rows: list[dict[str, Any]] = []
    for start in range(0, len(t_R), _CHUNK):
        t_B, n_B = t_R[start : start + _CHUNK], n_R[start : start + _CHUNK]
        truth_B, predicted_B, confidence_B = probe.judge(table, t_B, n_B)
        scored_B = np.array([truth is not None for truth in truth_B], np.bool_)
        wrong_W = np.flatnonzero(scored_B & (truth_B != predicted_B))
        scored, wrong = scored + int(scored_B.sum()), wrong + len(wrong_W)
        rows += [
            {
                "key": table.keys[n_B[i]],
                "transformation": table.transformations[t_B[i]],
                "truth": truth_B[i],
                "predicted": predicted_B[i],
                "confidence": float(confidence_B[i]),
            }
            for i in wrong_W[np.argsort(-confidence_B[wrong_W], kind="stable")[:shown]]
        ]
        rows = sorted(rows, key=lambda row: -row["confidence"])[:shown]
    return {"head": probe.metadata["head"], "scored": scored, "wrong": wrong, "rows": rows}


def mistakes(store: EmbeddingStore, out: Path, tables: Sequence[EmbeddingTable]) -> dict[str, Any]:
    """Most confident mistakes of the first saved style probe, and of the class probe on unchanged photographs.

    Writes ``out/mistakes/<backbone>/`` with pictures of them, drawn again from the photographs; a row without
    ``picture`` is of a photograph that is gone or has changed. Controls are left out.

    Args:
        tables: tables of the probes in ``out``, which must be current.
    """
    began = time.perf_counter()
    found: dict[str, Any] = {}
    missing: dict[str, tuple[Path, Stamp]] = {}
    for table in tables:
        entry = store.backbone(table.backbone)
        probes = note_of(out / PROBES / entry.slug)
        if probes is None or entry.facts["spec"]["control"]:
            continue
        folder = out / MISTAKES / entry.slug
        stamp = Stamp.of(store, table, {"probes": probes.files, "shown": SHOWN})
        if fits(folder, stamp):
            found[entry.name] = read_object(folder / _FILE)
            continue
        missing[entry.name] = folder, stamp
        found[entry.name] = {}
        for task, chosen in (
            ("fine", range(len(table.transformations))),
            ("semantic", [table.transformations.index("identity")]),
        ):
            names = [name for head in HEADS if (name := f"{task}-{head}.safetensors") in probes.files]
            if names:
                probe = Probe.load(out / PROBES / entry.slug / names[0])
                found[entry.name][task] = most_confident(probe, table, chosen, SHOWN)
    if missing:
        pictures = _pictures(store, tables[0], [row for name in missing for row in _rows(found[name])])
    for name, (folder, stamp) in missing.items():
        with replacing(folder) as new:
            for i, row in enumerate(_rows(found[name])):
                pixels = pictures.get((row["transformation"], row["key"]))
                if pixels is not None:
                    Image.fromarray(pixels).save(new / f"{i}.png")
                    row["picture"] = f"{folder.name}/{i}.png"
            write_durably(new / _FILE, json.dumps(found[name], allow_nan=False).encode())
            if all("picture" in row for row in _rows(found[name])):  # else try again next time
                finish(new, stamp, time.perf_counter() - began)
    return found


def _rows(of_backbone: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for part in of_backbone.values() for row in part["rows"]]


def _pictures(
    store: EmbeddingStore, table: EmbeddingTable, rows: Sequence[dict[str, Any]]
) -> dict[tuple[str, str], NDArray[np.uint8]]:
    """Pixels by transformation and key."""
    wanted = {(row["transformation"], row["key"]) for row in rows}
    if not wanted:
        return {}
    place = {key: n for n, key in enumerate(table.keys)}
    n_M = np.array(sorted({place[key] for _, key in wanted}), np.int64)
    names = [name for name in table.transformations if any(name == chosen for chosen, _ in wanted)]
    drawn = current_variants(store, table, n_M, names)
    return {(name, key): pixels for name, key, pixels in drawn if (name, key) in wanted}
