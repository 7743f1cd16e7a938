"""Commands `info` and `verify`."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
from typing import Any

import numpy as np

from substyle.engine.backbones.spec import EXECUTED
from substyle.engine.commands.json_output import wrapped
from substyle.engine.embedding.plan import lacking
from substyle.engine.store import compaction
from substyle.engine.store.layout import SPLITS, BackboneEntry
from substyle.engine.store.lock import Part
from substyle.engine.store.records import Index
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import definitions, store_facts
from substyle.engine.store.verify import Verdict
from substyle.engine.store.verify import verify as verify_store

FIRST = 5  # class names shown
_SETTINGS = ("seed", "canvas", "dtype", "codec", "orientation", "style_precision", "crop_pct", "shard_rows")


def store_info(options: argparse.Namespace) -> dict[str, Any]:
    """Contents and progress of a store."""
    answer = describe(EmbeddingStore.open(options.store))
    for line in _lines(answer):
        print(wrapped(line, 4 if line.startswith(" ") else 17))
    return answer


def describe(store: EmbeddingStore) -> dict[str, Any]:
    """Contents and progress of a store, as printed by `substyle info --json`."""
    finished = store.finished()
    images = _images(store)
    backbones = [_backbone(store, entry, finished) for entry in store.backbones()]
    settings, damaged = store.settings, (store.path / compaction.NAME).is_file()
    return {
        "store": str(store.path),
        "uuid": store.uuid,
        "damaged": damaged,
        "bytes": sum(backbone["bytes"] for backbone in backbones),
        **{name: getattr(settings, name) for name in _SETTINGS},
        "sources": _sources(store),
        **images,
        "transformations": list(dict.fromkeys(name for backbone in backbones for name in backbone["transformations"])),
        "backbones": backbones,
        "complete": bool(backbones) and not damaged and all(backbone["complete"] for backbone in backbones),
    }


def _sources(store: EmbeddingStore) -> list[dict[str, Any]]:
    """Sources of the images, with image counts."""
    if not store.has_manifest():
        return []
    manifest = store.manifest()
    count = np.bincount(manifest.source_N, minlength=len(manifest.sources)).tolist()
    return [
        {"name": entry.name, "kind": entry.kind, "root": entry.root, "options": dict(entry.options)}
        | {"fractions": list(entry.fractions), "images": images}
        for entry, images in zip(manifest.sources, count, strict=True)
    ]


def _images(store: EmbeddingStore) -> dict[str, Any]:
    """Images, classes and splits; empty for a store without a manifest."""
    if not store.has_manifest():
        nothing = dict.fromkeys(SPLITS, 0)
        return {"images": 0, "classes": _classes(()), "splits": nothing, "duplicates": 0, "moved": 0, "quarantined": 0}
    manifest, facts = store.manifest(), store_facts(store)
    return {
        "images": len(manifest.keys),
        "classes": _classes(manifest.class_names),
        "splits": dict(zip(SPLITS, facts.splits, strict=True)),
        "photographs": _photographs(store),
        "duplicates": facts.copies,
        "moved": len(facts.moved),  # to the split of a near-duplicate
        "quarantined": len(facts.quarantined),
    }


def _photographs(store: EmbeddingStore) -> str:
    """Digest of keys, classes, splits and content hashes of the photographs."""
    manifest = store.manifest()
    noted = store.notes(manifest)
    rows = (manifest.keys, manifest.label_N.tolist(), manifest.split_N.tolist())
    digest = hashlib.sha256(json.dumps([*rows, list(manifest.class_names)]).encode())
    digest.update(manifest.row_N[noted.known_N].tobytes() + noted.content_N2[noted.known_N].tobytes())
    return digest.hexdigest()[:16]


def _classes(names: tuple[str, ...]) -> dict[str, Any]:
    return {"number": len(names), "first": list(names[:FIRST])}


def _backbone(store: EmbeddingStore, entry: BackboneEntry, finished: Index) -> dict[str, Any]:
    """Description and progress of a backbone."""
    names = [str(definition["name"]) for definition in definitions(store, entry)]
    rows = store.settings.shard_rows
    size_S = store.manifest().shard_sizes(rows) if store.has_manifest() else np.zeros(0, np.int64)
    lacks = lacking(size_S, finished, [entry.slug], names, Part())
    shards = lacks.shards - len(lacks.shard_W) if names else 0
    spec, runtime = entry.facts["spec"], entry.facts["runtime"]
    known = store.catalog.transformations[entry.slug]
    return {
        "name": entry.name,
        "dim": entry.dim,
        "runtime": runtime["name"],
        "precision": runtime["precision"],
        "executed": runtime.get(EXECUTED),
        "rounded": sorted(made.name for made in known.values() if len(made.pixels) > 1),
        "device": runtime.get("device"),
        "weights": spec.get("weights"),
        "transformations": names,
        "bytes": store.stored_bytes(entry, names),
        "embeddings": {"done": lacks.done, "total": lacks.total},
        "shards": {"finished": shards, "total": lacks.shards},
        "complete": 0 < lacks.total == lacks.done,
    }


def _lines(answer: dict[str, Any]) -> list[str]:
    """Format the description as text."""
    names, classes, splits = answer["transformations"], answer["classes"], answer["splits"]
    shown = ", ".join(classes["first"]) + (", …" if classes["number"] > FIRST else "")
    copies, moved = answer["duplicates"], answer["moved"]
    moved = f" ({copies} near-duplicates of others, {moved} of them moved to another split)" if copies else ""
    lines = [
        f"store            {answer['store']}, {_size(answer['bytes'])}, UUID {answer['uuid']}",
        *(["damage           found by verify; run embed to repair it"] if answer["damaged"] else []),
        *(
            f"source           {source['root']} ({source['kind']}, {source['images']:,} images)"
            for source in answer["sources"]
        ),
        f"settings         seed {answer['seed']}, canvas {answer['canvas']}, {answer['dtype']}, "
        f"codec {answer['codec']}, orientation {answer['orientation']}, crop_pct {answer['crop_pct']:g}, "
        f"shards of {answer['shard_rows']} rows",
        f"images           {answer['images']:,}, {answer['quarantined']:,} of them quarantined",
        f"classes          {classes['number']:,}" + (f": {shown}" if shown else ""),
        f"splits           {', '.join(f'{name} {count:,}' for name, count in splits.items())}{moved}",
        f"transformations  {len(names)}" + (f": {', '.join(names)}" if names else ""),
        f"backbones        {len(answer['backbones'])}",
    ]
    for backbone in answer["backbones"]:
        lines += _backbone_lines(backbone, len(names))
    return lines


def _backbone_lines(backbone: dict[str, Any], transformations: int) -> list[str]:
    done, total = backbone["embeddings"]["done"], backbone["embeddings"]["total"]
    shards, present = backbone["shards"], len(backbone["transformations"])
    # rounded down: 100 % must mean complete
    share = f" ({int(1000 * done / total) / 10:.1f} %)" if total else ""
    fewer = f"; {present} of the {transformations} transformations" if present < transformations else ""
    runtime = " ".join(str(backbone[name]) for name in ("runtime", "precision", "device") if backbone[name])
    if backbone["executed"] not in (None, backbone["precision"]):
        runtime += f" (executed in {backbone['executed']})"
    rounded = backbone["rounded"]
    return [
        f"  {backbone['name']}: {backbone['dim']} wide, {runtime}, {backbone['weights']}",
        f"    {done:,} of {total:,} embeddings{share}, {shards['finished']:,} of {shards['total']:,} shards, "
        f"{_size(backbone['bytes'])}{fewer}",
        *([f"    pixels rounded differently on several processors: {', '.join(rounded)}"] if rounded else []),
    ]


def _size(count: int) -> str:
    """Format a number of bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"


def verify(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle verify STORE`."""
    threads = len(os.sched_getaffinity(0))
    verdict = verify_store(options.store, note=not options.no_note, threads=threads, quiet=options.quiet)
    for finding in verdict.findings:
        print(f"{finding.kind}: {finding.path}: {finding.problem}; {finding.remedy}")
    print(f"{options.store}: {_summary(verdict)}")
    return {
        "ok": verdict.ok,
        "complete": verdict.ok and not verdict.pending,
        "store": str(options.store),
        "findings": [dataclasses.asdict(finding) for finding in verdict.findings],
        "bytes": verdict.shard_bytes,
        **{name: getattr(verdict, name) for name in ("images", "records", "shards", "pending", "unfinished", "noted")},
    }


def _summary(verdict: Verdict) -> str:
    checked = f"{verdict.shards} shards, {verdict.shard_bytes / 1e6:.1f} MB, {verdict.images} images"
    text = f"{checked}: " + ("intact" if verdict.ok else f"{len(verdict.damage)} damaged")
    if added := len(verdict.findings) - len(verdict.damage):
        text += f"; {added} unknown files"
    if verdict.pending:
        text += f"; {verdict.pending} embeddings are missing: run embed"
    if verdict.unfinished:
        text += f"; {verdict.unfinished} unfinished files, which embed replaces"
    if verdict.noted:
        text += "; run embed to repair the damage"
    elif verdict.not_noted_because:
        text += f"; the damage could not be recorded for embed: {verdict.not_noted_because}"
    return text
