"""Similarity of the backbones of a study: a result of several tables, kept in one folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from substyle.engine.analysis.similarity import similarity
from substyle.engine.config import AnalysisConfig
from substyle.engine.store.files import read_object, write_durably
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, open_tables
from substyle.engine.study import stages
from substyle.engine.study.outputs import (
    SIMILARITY,
    StaleError,
    Stamp,
    cached,
    note_of,
    require_fresh,
    table_digest,
)

_FILE = "similarity.json"


def compare(
    store: EmbeddingStore, out: Path, config: AnalysisConfig, tables: Sequence[EmbeddingTable], *, quiet: bool = False
) -> dict[str, Any]:
    """`similarity` of the backbones of these tables; writes ``out/similarity/similarity.json``.

    Empty for fewer than two backbones.
    """
    folder = out / SIMILARITY
    if len(tables) < 2:
        return {}
    settings = stages.stage_settings(config)

    def compute(new: Path) -> None:
        found = similarity(tables, config, quiet=quiet)
        write_durably(new / _FILE, json.dumps(found, allow_nan=False).encode())

    cached(folder, partial(_stamp_of, store, tables, settings), compute)
    return read_object(folder / _FILE)


def kept_similarity(
    store: EmbeddingStore, out: Path, tables: Sequence[EmbeddingTable], config: AnalysisConfig | None = None
) -> dict[str, Any]:
    """Load the result of `compare` for pairs of the backbones of these tables; empty if there is none.

    Args:
        tables: tables with the transformations of the report.
        config: required settings; default: those of the result.

    Raises:
        StaleError: the result is outdated.
    """
    folder = out / SIMILARITY
    note = note_of(folder)
    backbones = [table.backbone for table in tables]
    if note is None or len(set(backbones).intersection(note.stamp.settings.get("backbones", {}))) < 2:
        return {}
    settings = dict(note.stamp.settings)
    names = list(settings.pop("backbones", {}))
    again = f"substyle analyze {store.path}"
    if not set(names) <= {entry.name for entry in store.backbones()}:
        raise StaleError(f"{folder}: outdated, of another store", again)
    if list(note.stamp.transformations) != list(tables[0].transformations):
        raise StaleError(f"{folder}: outdated, computed from other transformations", again)
    now = _stamp(store, names, tables[0].transformations, stages.stage_settings(config) if config else settings)
    require_fresh(folder, note, now, again)
    found = read_object(folder / _FILE)
    pairs = {a: {b: pair for b, pair in row.items() if b in backbones} for a, row in found["pairs"].items()}
    return found | {"pairs": {a: row for a, row in pairs.items() if a in backbones and row}}


def _stamp(
    store: EmbeddingStore, names: Sequence[str], transformations: Sequence[str], settings: dict[str, Any]
) -> Stamp:
    return _stamp_of(store, open_tables(store, names, transformations), settings)


def _stamp_of(store: EmbeddingStore, tables: Sequence[EmbeddingTable], settings: dict[str, Any]) -> Stamp:
    digests = {table.backbone: table_digest(store, table) for table in tables}
    return Stamp.of(store, tables[0], settings | {"backbones": digests})
