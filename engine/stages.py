"""The stages after embedding: probes, analysis, gallery. Each keeps its results and skips what is complete."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from substyle.engine.analysis.config import AnalysisConfig
from substyle.engine.analysis.run import analyze
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.outcome import ProbeOutcome
from substyle.engine.probes.run import run_probes
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.files import read_json, write_durably
from substyle.engine.store.layout import BackboneEntry
from substyle.engine.store.load import open_table
from substyle.engine.styles import networks_for
from substyle.engine.workshop import Settings
from substyle.kernels.errors import SubstyleError
from substyle.pipelines.gallery import variants_of
from substyle.pipelines.sources import ImageRecord

_NOTE = "complete.json"
_VERSION = 1  # raise it when a stage computes something else from the same input


def chosen(store: EmbeddingStore, names: Sequence[str]) -> list[BackboneEntry]:
    """The backbones of those names, or all of the store. Raises StoreError for one that is not there."""
    return [store.backbone(name) for name in names] if names else store.backbones()


def probe(
    store: EmbeddingStore, out: Path, config: ProbeConfig, *, backbones: Sequence[str] = (), quiet: bool = False
) -> dict[str, ProbeOutcome]:
    """Train and score the probes of backbones; results and trained probes go to ``out/probes/<backbone>/``."""
    outcomes = {}
    for entry in chosen(store, backbones):
        folder = out / "probes" / entry.slug
        # which of several GPUs trained them is no reason to train them again
        stamp = _stamp(store, entry, asdict(config) | {"device": config.device.partition(":")[0]})
        if not _complete(folder, stamp):
            began = time.perf_counter()
            metadata = {
                "canvas": store.settings.canvas,
                "seed": store.settings.seed,
                "orientation": store.settings.orientation,
                "weights_hash": entry.facts["spec"]["weights_hash"],
                "checkpoint": entry.facts.get("checkpoint"),
            }
            table = open_table(store, entry.name)
            run_probes(table, config, out_dir=folder, quiet=quiet, metadata=metadata).save(folder)
            _finish(folder, stamp, time.perf_counter() - began)
        outcomes[entry.name] = ProbeOutcome.load(folder)
    return outcomes


def analysis(
    store: EmbeddingStore, out: Path, config: AnalysisConfig, *, backbones: Sequence[str] = (), quiet: bool = False
) -> dict[str, dict[str, Any]]:
    """Neighbours, geometry and clusters of backbones; results go to ``out/analysis/<backbone>/analysis.json``."""
    results = {}
    for entry in chosen(store, backbones):
        folder = out / "analysis" / entry.slug
        path = folder / "analysis.json"
        stamp = _stamp(store, entry, asdict(config))
        if not _complete(folder, stamp):
            began = time.perf_counter()
            answer = analyze(open_table(store, entry.name), config, quiet=quiet)
            folder.mkdir(parents=True, exist_ok=True)
            write_durably(path, json.dumps(answer, allow_nan=False).encode())
            _finish(folder, stamp, time.perf_counter() - began)
        results[entry.name] = read_json(path)
    return results


def gallery(records: Sequence[ImageRecord], out: Path, settings: Settings, *, threads: int) -> Path:
    """Variants of a few photographs as PNG files, ``out/gallery/<number>/<transformation>.png``."""
    folder = out / "gallery"
    stamp = hashlib.sha256(json.dumps([[r.key for r in records], asdict(settings)]).encode()).hexdigest()
    if _complete(folder, stamp):
        return folder
    networks = networks_for(
        settings.transformations, side=settings.canvas, threads=threads, precision=settings.style_precision
    )
    began = time.perf_counter()
    for number, record in enumerate(records):
        made = variants_of(
            record.read(),
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
    _finish(folder, stamp, time.perf_counter() - began)
    return folder


def seconds(out: Path, stage: str) -> float:
    """Wall time of a stage's finished work, as its folders note it."""
    return sum((float(_note(path.parent)["seconds"]) for path in (out / stage).glob(f"*/{_NOTE}")), 0.0)


def finished(folder: Path) -> bool:
    """Whether a stage's folder is complete. Raises SubstyleError where it was and its files have changed since."""
    if not (folder / _NOTE).exists():
        return False
    for name, digest in _note(folder)["files"].items():
        if _digest(folder / name) != digest:
            raise SubstyleError(f"{folder / name}: is not what was written; run the stage again")
    return True


def _stamp(store: EmbeddingStore, entry: BackboneEntry, config: dict[str, Any]) -> str:
    """Changes when the configuration, the code's version or a finished shard of the backbone does."""
    digest = hashlib.sha256(json.dumps([_VERSION, config, store.settings.seed], sort_keys=True).encode())
    finished = store.finished().of([entry.slug])
    order_R = np.lexsort((finished.sums_R, finished.shard_R))
    digest.update(finished.shard_R[order_R].astype("<i8").tobytes() + finished.sums_R[order_R].astype("<u8").tobytes())
    return digest.hexdigest()


def _complete(folder: Path, stamp: str) -> bool:
    """Whether the folder holds what this stamp stands for, every file as it was written; if not, it is made anew."""
    try:
        return finished(folder) and _note(folder)["stamp"] == stamp
    except SubstyleError as error:
        print(f"{error}: it is made anew", file=sys.stderr)
        return False


def _finish(folder: Path, stamp: str, spent: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    written = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _NOTE)
    files = {path.relative_to(folder).as_posix(): _digest(path) for path in written}
    note = {"stamp": stamp, "seconds": round(spent, 3), "files": files}
    write_durably(folder / _NOTE, json.dumps(note).encode())


def _note(folder: Path) -> dict[str, Any]:
    """What `_finish` noted in a folder. Raises SubstyleError when it is damaged."""
    note = read_json(folder / _NOTE)
    files, spent = (note.get("files"), note.get("seconds")) if isinstance(note, dict) else (None, None)
    good = isinstance(files, dict) and all(isinstance(digest, str) for digest in files.values())
    if not good or not isinstance(spent, int | float) or not 0 <= spent < math.inf or "stamp" not in note:
        raise SubstyleError(f"{folder / _NOTE}: is not what was written; run the stage again")
    return {**note, "seconds": float(spent)}


def _digest(path: Path) -> str:
    """SHA-256 of a file; empty where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):  # ValueError: no file can have that name
        return ""
