"""The folder that a study or a stage writes its results into: whose it is, what is in it, and what has to go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from substyle.engine.identity import PhotographsError, Ways
from substyle.engine.stamp import StaleError, Stamp, embeddings_digest, note_of, photographs_digest, shards_of
from substyle.engine.store import header
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.errors import StoreError
from substyle.engine.store.files import read_json, remove, write_durably, writing
from substyle.engine.store.layout import HEADER
from substyle.engine.store.load import open_tables
from substyle.kernels.errors import ConfigError
from substyle.pipelines.places import Place, place

STORE, RESULTS, PAGE = "store.zarr", "results.json", "report.html"
STAGES = ("probes", "analysis", "shift")
_REPORT = (RESULTS, PAGE, "tables", "figures")
# the marker last: until it is gone, the folder is known
_ALL = (*_REPORT, *STAGES, "gallery", STORE, "trace.json", HEADER)
_KIND = "results"


def claim(out: Path, store: Place, uuid: str) -> None:
    """Mark a folder as one of results, so that it is never taken for photographs.

    Args:
        store: where the embeddings are; uuid: of the store.

    Raises:
        ConfigError: the folder holds something else.
    """
    require_ours(out)
    where = store.absolute() if isinstance(store, Path) else store
    data = json.dumps({"kind": _KIND, "store": str(where), "uuid": uuid}, indent=1).encode()
    marker = out / HEADER
    if not marker.is_file() or marker.read_bytes() != data:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        write_durably(marker, data)


def require_ours(out: Path) -> None:
    """Raise ConfigError for a folder that holds something, and no results: nothing there is written over or deleted."""
    if out.is_dir() and claimed(out) is None and any(path.name != STORE for path in out.iterdir()):
        raise ConfigError("--out", str(out), "a new or empty folder, or one of results; this one holds other files")


def claimed(out: Path) -> dict[str, Any] | None:
    """What `claim` wrote; None where it has not."""
    content = read_json(out / HEADER) if (out / HEADER).is_file() else None
    return content if isinstance(content, dict) and content.get("kind") == _KIND else None


def require_own(out: Path, store: Place, ways: Ways) -> None:
    """Check that results of a store may go into a folder.

    Raises:
        ConfigError: the folder holds something else than results.
        PhotographsError: it holds results of another store that is still there.
    """
    require_ours(out)
    before = claimed(out)
    if before is None or not before.get("uuid"):
        return
    other = place(str(before["store"]), "store")
    uuid = header.read(store).uuid if header.exists(store) else None
    if uuid != before["uuid"] and header.exists(other) and header.read(other).uuid == before["uuid"]:
        raise PhotographsError(f"{out}: holds results of the store {other}, not {store}; {ways.other}", "out")


def start_fresh(out: Path) -> None:
    """Delete the results and the store of a folder, and nothing else.

    Raises:
        ConfigError: the folder holds something else than results.
    """
    if not out.exists():
        return
    require_ours(out)
    with writing(out):
        remove(out / STORE / HEADER)  # first: what is left of a store without its header is no store
        for name in _ALL:
            remove(out / name)


def discard_report(out: Path) -> None:
    """Delete a report that no longer says what its study says; what stages have computed is kept."""
    with writing(out):
        for name in _REPORT:
            remove(out / name)


def stamp_digest(stamp: Stamp) -> str:
    """A stamp in 16 hex digits."""
    return hashlib.sha256(json.dumps(asdict(stamp), sort_keys=True).encode()).hexdigest()[:16]


def stamps(out: Path, slugs: Iterable[str]) -> dict[str, str]:
    """Digests of the stamps of the finished results of some backbones, by their place in a folder."""
    found = {}
    for name in (*(f"{stage}/{slug}" for slug in slugs for stage in STAGES), "gallery"):
        note = note_of(out / name)
        if note is not None:
            found[name] = stamp_digest(note.stamp)
    return found


def require_current(out: Path, results: Mapping[str, Any]) -> None:
    """Check that results.json reports what is beside it, and what its store holds, where these are there.

    Raises:
        StaleError: stages were run again since, or embeddings were made again.
    """
    reported = results.get("stamps")
    if not isinstance(reported, dict) or claimed(out) is None:
        return  # of a file that was moved away from its results
    there = stamps(out, {name.partition("/")[2] for name in reported} - {""})
    differing = sorted(name for name in reported if reported[name] != there.get(name))
    if differing:
        raise StaleError(f"{out / RESULTS}: {', '.join(differing)} were made again since; run substyle report again")
    identity = results.get("identity", {})
    before = place(str((claimed(out) or {}).get("store", "")), "store")
    if not header.exists(before) or header.read(before).uuid != identity.get("store"):
        return
    store = EmbeddingStore.open(before)
    digests = identity.get("embeddings", {})
    try:
        tables = open_tables(store, list(digests), [row["name"] for row in results["transformations"]])
    except StoreError as error:
        raise StaleError(f"{out / RESULTS}: its store has changed since: {error}") from error
    for table in tables:
        made = embeddings_digest(
            store, store.backbone(table.backbone).slug, table.transformations, shards_of(store, table)
        )
        if (photographs_digest(table), made) != (identity.get("photographs"), digests[table.backbone]):
            raise StaleError(f"{out / RESULTS}: {before} has changed since; run its stages and report again")
