"""The folder that a study or a stage writes its results into: whose it is, what is in it, and what has to go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from substyle.engine.identity import PhotographsError, Ways
from substyle.engine.stamp import NOTE, StaleError, Stamp, note_of
from substyle.engine.store import header
from substyle.engine.store.files import read_json, remove, write_durably, writing
from substyle.engine.store.layout import HEADER
from substyle.kernels.errors import ConfigError
from substyle.pipelines.places import Place, place

STORE, RESULTS, PAGE = "store.zarr", "results.json", "report.html"
STAGES = ("probes", "analysis", "gallery", "shift")
_REPORT = (RESULTS, PAGE, "tables", "figures")
_ALL = (*_REPORT, *STAGES, STORE, "trace.json", HEADER)  # the marker last: until it is gone, the folder is known
_KIND = "results"


def claim(out: Path, store: Place, uuid: str) -> None:
    """Mark a folder as one of results, so that it is never taken for photographs.

    Args:
        store: where the embeddings are; uuid: of the store.
    """
    where = store.absolute() if isinstance(store, Path) else store
    data = json.dumps({"kind": _KIND, "store": str(where), "uuid": uuid}, indent=1).encode()
    marker = out / HEADER
    if not marker.is_file() or marker.read_bytes() != data:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        write_durably(marker, data)


def claimed(out: Path) -> dict[str, Any] | None:
    """What `claim` wrote; None where it has not."""
    content = read_json(out / HEADER) if (out / HEADER).is_file() else None
    return content if isinstance(content, dict) and content.get("kind") == _KIND else None


def require_own(out: Path, store: Place, ways: Ways) -> None:
    """Raise PhotographsError where a folder holds results of another store that is still there."""
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
        ConfigError: the folder holds something, and is not a folder of results.
    """
    if not out.exists():
        return
    if claimed(out) is None and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("--fresh", str(out), "a folder of results; this one was not made by substyle")
    with writing(out):
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


def stamps(out: Path) -> dict[str, str]:
    """Digests of the stamps of all finished results in a folder, by their place in it."""
    found = {}
    for stage in STAGES:
        for path in sorted((out / stage).glob(f"**/{NOTE}")):
            note = note_of(path.parent)
            if note is not None:
                found[path.parent.relative_to(out).as_posix()] = stamp_digest(note.stamp)
    return found


def require_current(out: Path, results: Mapping[str, Any]) -> None:
    """Raise StaleError where results.json reports other results than those that lie beside it."""
    reported = results.get("stamps")
    if not isinstance(reported, dict):
        return  # of a file that was moved away from its results
    there = stamps(out)
    differing = sorted(name for name in reported.keys() & there.keys() if reported[name] != there[name])
    if differing:
        raise StaleError(f"{out / RESULTS}: {', '.join(differing)} were made again since; run substyle report again")
