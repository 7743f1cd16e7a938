"""Test variants that saved probes get most confidently wrong, with pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from substyle.engine.probes.checkpoint import Probe
from substyle.engine.report.data import HEADS
from substyle.engine.store.files import read_object, remove, write_durably
from substyle.engine.store.layout import TEST
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable
from substyle.engine.study.explore import current_variants
from substyle.engine.study.outputs import MISTAKES, Stamp, finish, fits, note_of
from substyle.engine.study.stages import PROBES

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
    new: dict[str, tuple[Path, Stamp]] = {}
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
        new[entry.name] = folder, stamp
        found[entry.name] = {}
        for task, chosen in (
            ("fine", range(len(table.transformations))),
            ("semantic", [table.transformations.index("identity")]),
        ):
            names = [name for head in HEADS if (name := f"{task}-{head}.safetensors") in probes.files]
            if names:
                probe = Probe.load(out / PROBES / entry.slug / names[0])
                found[entry.name][task] = most_confident(probe, table, chosen, SHOWN)
    if new:
        pictures = _pictures(store, tables[0], [row for name in new for row in _rows(found[name])])
    for name, (folder, stamp) in new.items():
        remove(folder)
        folder.mkdir(parents=True)
        for i, row in enumerate(_rows(found[name])):
            pixels = pictures.get((row["transformation"], row["key"]))
            if pixels is not None:
                Image.fromarray(pixels).save(folder / f"{i}.png")
                row["picture"] = f"{folder.name}/{i}.png"
        write_durably(folder / _FILE, json.dumps(found[name], allow_nan=False).encode())
        if all("picture" in row for row in _rows(found[name])):  # else try again next time
            finish(folder, stamp, time.perf_counter() - began)
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
