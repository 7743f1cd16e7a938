"""Output folder of a study: ownership and contents."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from substyle import files
from substyle.engine import cache
from substyle.engine.stages.registry import folders
from substyle.engine.stages.stamp import (
    StaleError,
    checksum,
    note_of,
    photographs_digest,
    table_digest,
    with_leftovers,
)
from substyle.engine.store import catalog, lock
from substyle.engine.store.files import read_json, replacing_own, write_durably, writing
from substyle.engine.store.identity import PhotographsError, Remedies
from substyle.engine.store.layout import HEADER, StoreError
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import open_tables
from substyle.errors import ConfigError, SubstyleError
from substyle.files import remove
from substyle.pipelines.storage import Place, is_remote, place

STORE, RESULTS, PAGE, CARD = "store.zarr", "results.json", "report.html", "README.md"
# list of the files of report and card, and how to tell results of a version without it
_OWN, _FORMER = ".substyle-files.json", (RESULTS, '"checksum": "')
_REPORT = (RESULTS, PAGE, CARD, "tables", "figures", _OWN)
_TRACKED = ("tensorboard", "wandb", "trace.json")
_KIND = "results"


def claim(out: Path, store: Place, uuid: str) -> None:
    """Mark a folder as an output folder, so that it is not mistaken for photographs.

    Args:
        store: store of the embeddings.
        uuid: UUID of the store.

    Raises:
        ConfigError: the folder contains other files.
    """
    require_ours(out)
    data = json.dumps({"kind": _KIND, "store": str(store.absolute()), "uuid": uuid}, indent=1).encode()
    marker = out / HEADER
    if not marker.is_file() or marker.read_bytes() != data:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        write_durably(marker, data)
    cache.note("claims", _claim(out, json.loads(data)))


def _claim(out: Path, marker: Mapping[str, Any]) -> dict[str, Any]:
    return {"out": str(out.absolute()), "store": marker["store"], "uuid": marker["uuid"]}


_LOCK = (lock.NAME, f".{lock.NAME}", lock.MUTEX)


@contextmanager
def locked(out: Path, store: Place | None = None, uuid: str = "") -> Iterator[None]:
    """Hold the lock of an output folder, which is created if it does not exist, and `claim` it for a store, if given.

    Raises:
        ConfigError: the folder contains other files.
        LockedError: another run is writing results into the folder.
    """
    require_ours(out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with lock.hold(out, lock.new_run_id()):
        if store is not None:
            claim(out, store, uuid)
        yield


def require_ours(out: Path) -> None:
    """Raise ConfigError if a folder is not empty and not an output folder, to protect other files.

    Raises UnsafeFileError if its results contain links, which would be read or written outside.
    """
    for name in (*_REPORT, *folders(), "gallery", HEADER):
        files.require_no_links(out / name, 2)
    if not out.is_dir() or claimed(out) is not None:
        return
    # stores, and what an earlier run has left that was stopped before it could `claim` the folder
    others = [path for path in out.iterdir() if path.suffix != ".zarr" and path.name not in (*_LOCK, *_TRACKED)]
    if not all(files.is_litter(path.name) for path in others):
        raise ConfigError("--out", str(out), "a new, empty or output folder; this one contains other files")


def claimed(out: Path) -> dict[str, Any] | None:
    """The marker written by `claim`, or None: a regular file that names a store and its UUID."""
    content = read_json(out / HEADER) if files.is_regular(out / HEADER) else None
    if not isinstance(content, dict) or content.get("kind") != _KIND or not isinstance(content.get("store"), str):
        return None
    return content if isinstance(content.get("uuid"), str) else None


def require_own(out: Path, store: Place, remedies: Remedies) -> None:
    """Check that results of a store may be written to a folder.

    Raises:
        ConfigError: the folder contains other files, or is in the store.
        PhotographsError: the folder contains results of another existing store, or of another store that only a file
            of somebody else names, which is not opened.
    """
    require_ours(out)
    if isinstance(store, Path) and out.resolve().is_relative_to(store.resolve()):
        raise ConfigError("--out", str(out), f"a folder outside {store}")
    before, other = claimed(out), _own_store(out)
    if before is None or not before["uuid"]:
        return
    uuid = catalog.read_header(store).uuid if catalog.exists(store) else None
    if uuid == before["uuid"]:
        return
    if other is None or (catalog.exists(other) and catalog.read_header(other).uuid == before["uuid"]):
        which = "another store, and was not made here" if other is None else f"the store {other}, not {store}"
        raise PhotographsError(f"{out}: contains results of {which}; {remedies.other}", "out")


def _own_store(out: Path) -> Place | None:
    """The store that the marker of a folder names, if this user has made the folder here: else anybody named it."""
    marker = claimed(out)
    if marker is None or not cache.noted("claims", _claim(out, marker)):
        return None
    return place(str(marker["store"]), "store")


def start_fresh(out: Path) -> None:
    """Delete results and store of an output folder, and nothing else.

    Raises:
        ConfigError: the folder contains other files, or was not made here by this user: its marker alone shows nothing.
        UnsafeFileError: its store is a link.
    """
    if not out.exists():
        return
    require_ours(out)
    marker = claimed(out)
    if marker is None:  # stores and logs that lie there are not of a run into this folder
        return
    if not cache.noted("claims", _claim(out, marker)):
        raise ConfigError("--fresh", str(out), "an output folder that you have made here; delete this one yourself")
    files.inside(out, STORE)
    with writing(out):
        remove(out / STORE / HEADER)  # first: a partly deleted store without its header is not opened
        with replacing_report(out):
            pass
        for name in (*folders(), "gallery", STORE):
            for path in with_leftovers(out / name):
                remove(path)
        # the marker is deleted last, so that an interrupted deletion can be resumed, and never while others are there
        markers = with_leftovers(out / HEADER)
        known = (*_LOCK, *_TRACKED)  # logs may be older than the folder's first run, and of somebody else
        rest = sorted(path.name for path in out.iterdir() if path not in markers and path.name not in known)
        if rest:
            print(f"{out}: left {', '.join(rest)}, of stages that are not known now, or of yours", file=sys.stderr)
        for path in () if rest else markers:
            remove(path)


def replacing_report(out: Path) -> AbstractContextManager[Path]:
    """Yield an empty folder for results.json, report, tables and figures, which replace earlier ones and the card."""
    return replacing_own(out, _OWN, _FORMER)


def adding_card(folder: Path, name: str) -> AbstractContextManager[Path]:
    """Yield an empty folder for the model card, a file in ``folder``."""
    return replacing_own(folder, _OWN, (name, "library_name: substyle"), add=True)


def unchanged_report(out: Path, results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The results.json of a folder if it says what ``results`` say and its report is as it was written, else None."""
    try:
        before, listed = read_json(out / RESULTS), read_json(out / _OWN)["files"]
        same = _lasting(before) == _lasting(json.loads(json.dumps(results))) and before["checksum"] == checksum(before)
        paths = {files.inside(out, name): digest for name, digest in listed.items()}
        intact = all(files.is_regular(path) and files.file_hash(path) == digest for path, digest in paths.items())
    except (SubstyleError, OSError, ValueError, TypeError, KeyError, AttributeError):  # of another version, or edited
        return None
    return before if same and intact and {RESULTS, PAGE} <= set(listed) else None


def _lasting(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results without what differs between two runs of the same study."""
    throughput = {name: value for name, value in results["throughput"].items() if name != "wall_seconds"}
    return {**results, "throughput": throughput, "created": "", "checksum": ""}


def stamps(out: Path, slugs: Iterable[str]) -> dict[str, str]:
    """Digests (16 hex digits) of the stamps of backbones' complete results, by relative path."""
    return digests(out, (*(f"{stage}/{slug}" for slug in slugs for stage in folders()), *folders()))


def digests(out: Path, folders: Iterable[str]) -> dict[str, str]:
    """Digests (16 hex digits) of the stamps of folders that are complete, by relative path."""
    found = {}
    for name in folders:
        note = note_of(files.inside(out, name))
        if note is not None:
            stamp = json.dumps(asdict(note.stamp), sort_keys=True)
            found[name] = hashlib.sha256(stamp.encode()).hexdigest()[:16]
    return found


def require_current(out: Path, results: Mapping[str, Any]) -> None:
    """Check that results.json is as it was written, and matches the stages and the store it was computed from, if any.

    Raises:
        StaleError: it was edited, or stages were rerun or embeddings recomputed since.
    """
    path, in_own_folder = out / RESULTS, claimed(out) is not None
    if in_own_folder:
        require_ours(out)
    if results.get("checksum") != checksum(results):
        raise StaleError(f"{path}: modified since it was written, or of an older version", "substyle report")
    reported = results.get("stamps")
    if not in_own_folder or not isinstance(reported, dict):
        return  # results.json was copied elsewhere
    current = digests(out, reported)  # also of stages that are not known now
    if differing := sorted(name for name in reported if reported[name] != current.get(name)):
        raise StaleError(f"{path}: outdated, {', '.join(differing)} changed since; run substyle report")
    identity = results.get("identity", {})
    store = _store_of(out, identity.get("store"))
    if store is None:
        return
    embedded = identity.get("embeddings", {})
    try:
        tables = open_tables(store, list(embedded), [row["name"] for row in results["transformations"]])
    except StoreError as error:
        raise StaleError(f"{path}: outdated, the store has changed since: {error}") from error
    for table in tables:
        expected = identity.get("photographs"), embedded[table.backbone]
        if (photographs_digest(table), table_digest(store, table)) != expected:
            raise StaleError(f"{path}: outdated, {store.path} has changed since; rerun the stages and report")


def _store_of(out: Path, uuid: str | None) -> EmbeddingStore | None:
    """The store with a UUID: in the output folder, which may have been moved or copied, else where its marker says."""
    elsewhere = _own_store(out)
    for candidate in (place(files.inside(out, STORE)), elsewhere):
        if candidate is not None and catalog.exists(candidate) and catalog.read_header(candidate).uuid == uuid:
            return EmbeddingStore.open(candidate)
    if elsewhere is None:
        print(f"{out}: not made here, so it is not compared with its store", file=sys.stderr)
    return None


def name_of(images: Path | str) -> str:
    """Name of a study of photographs: the folder's name, or the file's without its suffix."""
    if is_remote(images):
        name = PurePosixPath(str(images)).stem
    else:
        path = Path(os.path.abspath(images))
        name = path.name if path.is_dir() else path.stem
    name = name.encode("utf-8", "backslashreplace").decode()  # file names may not be valid UTF-8
    # removes special characters of patterns such as train-{0000..0146}.tar
    return re.sub(r"-*[\\{}*?\[\]]+-*", "-", name).strip("-. ") or "photographs"


def default_out(name: str) -> Path:
    """Default of ``--out``: ``runs/<name>``, or ``runs/<name>-results`` if that folder holds photographs or a store."""
    out = Path("runs") / name
    if out.is_dir() and any(out.iterdir()) and claimed(out) is None:
        return out.with_name(f"{name}-results")
    return out
