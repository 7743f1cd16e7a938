"""The stages after embedding: probes, analysis, gallery. Each keeps its results and skips what is complete."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from substyle.engine.analysis.config import AnalysisConfig
from substyle.engine.analysis.run import analyze
from substyle.engine.backbones import cache
from substyle.engine.embed_config import Settings
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.outcome import ProbeOutcome
from substyle.engine.probes.run import run_probes
from substyle.engine.stamp import StaleError, Stamp, finish, fits, note_of, require_fresh
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.files import read_object, remove, write_durably
from substyle.engine.store.load import open_tables, store_facts
from substyle.engine.store.notes import hex_of
from substyle.engine.store.record import content_hash
from substyle.engine.styles import networks_for
from substyle.engine.table import EmbeddingTable
from substyle.pipelines.gallery import variants_of
from substyle.pipelines.sources import ImageRecord
from substyle.pipelines.transforms import base

PROBES, ANALYSIS, GALLERY = "probes", "analysis", "gallery"
_GALLERY_CODE = ("kernels/*", "pipelines/*", "pipelines/transforms/*", "engine/style*")


def tables(
    store: EmbeddingStore, backbones: Sequence[str] = (), transformations: Sequence[str] = ()
) -> list[EmbeddingTable]:
    """Tables of backbones, or of all of the store, over the same photographs and transformations.

    Photographs that are not finished in all of these are left out, and their number is said.
    """
    names = backbones or [entry.name for entry in store.backbones()]
    found = open_tables(store, names, transformations)
    left_out = len(store.manifest().keys) - len(store_facts(store).quarantined) - len(found[0].keys)
    if left_out:
        print(
            f"{store.path}: {left_out} photographs are left out: they are not embedded yet in all "
            f"{len(found[0].transformations)} transformations by {', '.join(names)}; run substyle embed",
            file=sys.stderr,
        )
    return found


def _finish(store: EmbeddingStore, table: EmbeddingTable, folder: Path, stamp: Stamp, began: float) -> None:
    """Finish a folder of results. Raises StaleError where their embeddings were made again meanwhile."""
    if stamp != Stamp.of(store, table, stamp.settings):
        remove(folder)
        raise StaleError(f"{store.path}: embeddings of {table.backbone} have changed meanwhile; run the stage again")
    finish(folder, stamp, time.perf_counter() - began)


def probe_settings(config: ProbeConfig) -> dict[str, Any]:
    """What probes depend on: which of several GPUs trained them is no reason to train them again."""
    return asdict(config) | {"device": config.device.partition(":")[0]}


def probe(
    store: EmbeddingStore,
    out: Path,
    config: ProbeConfig,
    *,
    backbones: Sequence[str] = (),
    transformations: Sequence[str] = (),
    quiet: bool = False,
) -> dict[str, ProbeOutcome]:
    """Train and score the probes of backbones; results and trained probes go to ``out/probes/<backbone>/``.

    Args:
        backbones, transformations: which; all of the store, and all that these backbones have, where none are named.
    """
    outcomes = {}
    for table in tables(store, backbones, transformations):
        entry = store.backbone(table.backbone)
        folder = out / PROBES / entry.slug
        stamp = Stamp.of(store, table, probe_settings(config))
        if not fits(folder, stamp):
            remove(folder)
            began = time.perf_counter()
            metadata = {
                "canvas": store.settings.canvas,
                "seed": store.settings.seed,
                "orientation": store.settings.orientation,
                "weights_hash": entry.facts["spec"]["weights_hash"],
                "code": entry.facts["spec"].get("code", ""),
                "checkpoint": entry.facts.get("checkpoint"),
            }
            run_probes(table, config, out_dir=folder, quiet=quiet, metadata=metadata).save(folder)
            _finish(store, table, folder, stamp, began)
        outcomes[entry.name] = ProbeOutcome.load(folder)
    return outcomes


def analysis(
    store: EmbeddingStore,
    out: Path,
    config: AnalysisConfig,
    *,
    backbones: Sequence[str] = (),
    transformations: Sequence[str] = (),
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Neighbours, geometry and clusters of backbones; results go to ``out/analysis/<backbone>/analysis.json``."""
    results = {}
    for table in tables(store, backbones, transformations):
        entry = store.backbone(table.backbone)
        folder = out / ANALYSIS / entry.slug
        path = folder / "analysis.json"
        stamp = Stamp.of(store, table, asdict(config))
        if not fits(folder, stamp):
            remove(folder)
            began = time.perf_counter()
            answer = analyze(table, config, quiet=quiet)
            folder.mkdir(parents=True, exist_ok=True)
            write_durably(path, json.dumps(answer, allow_nan=False).encode())
            _finish(store, table, folder, stamp, began)
        results[entry.name] = read_object(path)
    return results


@dataclass(frozen=True)
class Kept:
    """What stages have left in a folder, by backbone, and the tables that it was made from."""

    outcomes: dict[str, ProbeOutcome]
    analyses: dict[str, dict[str, Any]]
    tables: list[EmbeddingTable]


def kept(
    store: EmbeddingStore,
    out: Path,
    transformations: Sequence[str] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Kept:
    """What probe and analyze have left in a folder.

    Args:
        transformations: what they must be of; as the first of them says where none are named.
        settings: what the stages' settings must be, by stage; None takes any, if all backbones have the same.

    Raises:
        StaleError: some were made from other photographs, embeddings, definitions or code than there are now, or two
            of them from different ones.
    """
    found = [
        (stage, entry.name, folder, note)
        for entry in store.backbones()
        for stage in (PROBES, ANALYSIS)
        for folder in (out / stage / entry.slug,)
        if (note := note_of(folder)) is not None
    ]
    if not found:
        return Kept({}, {}, [])
    wanted = dict(settings or {})
    for stage, _, _, note in found:
        wanted.setdefault(stage, note.stamp.settings)
    names = tuple(transformations) or tuple(found[0][3].stamp.transformations)
    together = list(dict.fromkeys(name for _, name, _, _ in found))
    command = {PROBES: "substyle probe", ANALYSIS: "substyle analyze"}
    of = {table.backbone: table for table in tables(store, together, _present(store, together, names, found[0][2]))}
    outcomes, analyses = {}, {}
    for stage, name, folder, note in found:
        now = Stamp.of(store, of[name], wanted[stage])
        require_fresh(folder, note, now, f"{command[stage]} {store.path}")
        if stage == PROBES:
            outcomes[name] = ProbeOutcome.load(folder)
        else:
            analyses[name] = read_object(folder / "analysis.json")
    return Kept(outcomes, analyses, list(of.values()))


def _present(store: EmbeddingStore, backbones: Sequence[str], names: Sequence[str], folder: Path) -> Sequence[str]:
    """The names. Raises StaleError where a backbone of the store has not all of these transformations."""
    for name in backbones:
        absent = set(names) - set(store.transformation_names(store.backbone(name)))
        if absent:
            raise StaleError(f"{folder}: made from other transformations; {name} has no {', '.join(sorted(absent))}")
    return names


def gallery(
    store: EmbeddingStore, records: Sequence[ImageRecord], out: Path, settings: Settings, *, threads: int
) -> Path:
    """Variants of a few photographs as PNG files, ``out/gallery/<number>/<transformation>.png``."""
    folder = out / GALLERY
    blobs = [record.read() for record in records]
    stamp = gallery_stamp(
        store, [(r.key, content_hash(blob)) for r, blob in zip(records, blobs, strict=True)], settings
    )
    if fits(folder, stamp):
        return folder
    remove(folder)
    networks = networks_for(
        settings.transformations, side=settings.canvas, threads=threads, precision=settings.style_precision
    )
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
        )
        place = folder / str(number)
        place.mkdir(parents=True, exist_ok=True)
        for name, pixels in made.items():
            Image.fromarray(pixels).save(place / f"{name}.png")
    finish(folder, stamp, time.perf_counter() - began)
    return folder


def gallery_stamp(store: EmbeddingStore, photographs: Sequence[tuple[str, str]], settings: Settings) -> Stamp:
    """The stamp of a gallery of photographs, each given by key and content hash."""
    chosen = {"photographs": [list(pair) for pair in sorted(photographs)]}
    return Stamp(
        store.uuid,
        hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:16],
        {name: base.get(name).definition_hash() for name in settings.transformations},
        "",
        json.loads(json.dumps(asdict(settings))) | chosen,
        cache.code_hash(*_GALLERY_CODE),
    )


def current_gallery(store: EmbeddingStore, out: Path, table: EmbeddingTable) -> Path | None:
    """The gallery of a folder where its pictures are of photographs and transformations of a table; else None."""
    folder = out / GALLERY
    try:
        note = note_of(folder)
    except StaleError as error:
        print(f"{error}: the gallery is left out", file=sys.stderr)
        return None
    if note is None:
        return None
    known = store.catalog.transformations[store.backbone(table.backbone).slug]
    contents = [] if table.content_N2 is None else hex_of(table.content_N2)
    there = dict(zip(table.keys, contents, strict=False))
    wanted = {name: known[name].hash for name in table.transformations}
    shown = note.stamp.settings.get("photographs", [])
    current = note.stamp.store == store.uuid and note.stamp.transformations == wanted
    return folder if current and all(there.get(key) == content for key, content in shown) else None
