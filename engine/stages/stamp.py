"""What results are computed from, and whether they are still up to date."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle import files
from substyle.engine import cache
from substyle.engine.store.files import read_json, write_durably, writing
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, StoredRows
from substyle.errors import SubstyleError

NOTE = "complete.json"  # written last into a stage's folder: stamp, wall time and checksum of each file
# that compute results
_LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "faiss-cpu", "faiss-gpu")


class StaleError(SubstyleError):
    """Existing results are outdated: their inputs have changed.

    Attributes:
        command: the command that recomputes them, at the end of the message; empty if ``--study`` cannot be appended.
    """

    def __init__(self, message: str, command: str = "") -> None:
        super().__init__(f"{message}; run {command}" if command else message)
        self.command = command


@dataclass(frozen=True)
class Stamp:
    """All inputs of a result. Results with an outdated stamp are recomputed or rejected.

    Attributes:
        store: UUID of the store.
        photographs: digest of keys, classes, splits and bytes of the photographs.
        transformations: identity of each transformation's definition, by name.
        embeddings: digest of the embeddings' checksums; empty if the result does not use embeddings.
        settings: settings of the stage, in JSON types.
        code: version of the stage and of libraries.
    """

    store: str
    photographs: str
    transformations: dict[str, str]
    embeddings: str
    settings: dict[str, Any]
    code: str

    @staticmethod
    def of(store: EmbeddingStore, table: EmbeddingTable, settings: Mapping[str, Any]) -> Stamp:
        """The current stamp of results computed from a table."""
        entry = store.backbone(table.backbone)
        known = store.catalog.transformations[entry.slug]
        return Stamp(
            store.uuid,
            photographs_digest(table),
            {name: known[name].identity for name in table.transformations},
            table_digest(store, table),
            json.loads(json.dumps(dict(settings), default=str)),
            ", ".join(f"{name} {version}" for name, version in cache.versions(*_LIBRARIES).items() if version),
        )

    def differences(self, now: Stamp) -> list[str]:
        """Describe the differences from the current stamp."""
        found = []
        for name, words in (
            ("store", "another store"),
            ("photographs", "other photographs, classes or splits"),
            ("embeddings", "other embeddings"),
        ):
            if getattr(self, name) != getattr(now, name):
                found.append(words)
        if self.code != now.code:
            found.append(f"another version of substyle or a library: {self.code}, {now.code} now")
        if list(self.transformations) != list(now.transformations):
            same = self.transformations.keys() == now.transformations.keys()
            found.append("another order of transformations" if same else "other transformations")
        elif self.transformations != now.transformations:
            changed = [name for name, value in now.transformations.items() if self.transformations[name] != value]
            found.append(f"other definitions of {', '.join(changed)}")
        if self.settings != now.settings:
            names = sorted(self.settings.keys() | now.settings.keys())
            changed = [name for name in names if self.settings.get(name) != now.settings.get(name)]
            found.append(f"other settings: {', '.join(changed)}")
        return found


def photographs_digest(table: EmbeddingTable) -> str:
    """Digest of the photographs of a table: keys, classes, splits and bytes; 16 hex digits."""
    names = json.dumps([table.keys, table.class_names]).encode()
    digest = hashlib.sha256(names)
    digest.update(table.label_N.astype("<i8").tobytes() + table.split_N.tobytes())
    if table.content_N2 is not None:
        digest.update(table.content_N2.astype("<u8").tobytes())
    return digest.hexdigest()[:16]


def table_digest(store: EmbeddingStore, table: EmbeddingTable) -> str:
    """Digest of the embeddings of a table, see `embeddings_digest`; of its shards, if they are known."""
    rows = table.x_TND.row_N if isinstance(table.x_TND, StoredRows) else None
    shards = None if rows is None else np.unique(rows // store.settings.shard_rows)
    return embeddings_digest(store, store.backbone(table.backbone).slug, table.transformations, shards)


def embeddings_digest(
    store: EmbeddingStore, slug: str, names: Sequence[str], shards: NDArray[np.int64] | None = None
) -> str:
    """Digest of the checksums of a backbone's finished embeddings in the given transformations; 16 hex digits.

    Args:
        shards: restrict the digest to these shards, since a concurrent run may finish others.
    """
    finished = store.finished()
    if shards is not None:
        finished = finished.select(np.isin(finished.shard_R, shards))
    finished = finished.of([slug])
    finished = finished.select(finished.shares(names) > 0)
    order_R = np.lexsort((finished.sums_R, finished.shard_R))
    content = finished.shard_R[order_R].astype("<i8").tobytes() + finished.sums_R[order_R].astype("<u8").tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


@dataclass(frozen=True)
class Note:
    """Contents of ``complete.json``."""

    stamp: Stamp
    seconds: float
    files: dict[str, str]


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder for new results, which replaces ``folder`` at the end of the block unless an error occurs.

    Processes that compute the same results do not mix their files: the last to finish replaces the others'.
    """
    with ExitStack() as made:
        with writing(folder):
            new = made.enter_context(files.replacing_folder(folder))
        yield new


def with_leftovers(path: Path) -> list[Path]:
    """A path, and what processes that were killed in `replacing` left beside it."""
    return [path, *(left for left, _ in files.temporaries(path.parent, path.name))]


def checksum(document: Mapping[str, Any]) -> str:
    """Digest of a JSON object, except of its field ``checksum``; 16 hex digits."""
    content = json.dumps({name: value for name, value in document.items() if name != "checksum"})
    return hashlib.sha256(json.dumps(json.loads(content), sort_keys=True).encode()).hexdigest()[:16]


def finish(folder: Path, stamp: Stamp, spent: float) -> None:
    """Mark a folder of results as complete."""
    folder.mkdir(parents=True, exist_ok=True)
    written = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NOTE)
    files = {path.relative_to(folder).as_posix(): file_digest(path) for path in written}
    note: dict[str, Any] = {"stamp": asdict(stamp), "seconds": round(spent, 3), "files": files}
    write_durably(folder / NOTE, json.dumps(note | {"checksum": checksum(note)}).encode())


def note_of(folder: Path) -> Note | None:
    """Read the note of a folder; None if the folder is not complete.

    Raises:
        StaleError: the note is damaged, or a file in the folder has changed.
        UnsafeFileError: a file in the note is outside the folder, or a link.
    """
    path = files.inside(folder, NOTE)
    if not path.exists():
        return None
    try:
        content = read_json(path)
    except SubstyleError as error:
        raise StaleError(f"{error}; rerun the stage") from error
    if not isinstance(content, dict) or content.get("checksum") != checksum(content):
        raise StaleError(f"{path}: damaged, or of another version of substyle; rerun the stage")
    try:
        note = Note(Stamp(**content["stamp"]), content["seconds"], content["files"])
    except (KeyError, TypeError) as error:
        raise StaleError(f"{path}: of another version of substyle; rerun the stage") from error
    for name, digest in note.files.items():
        if file_digest(files.inside(folder, name)) != digest:
            raise StaleError(f"{folder / name}: modified since it was written; rerun the stage")
    return note


def require_own_file(path: Path) -> None:
    """Raise StaleError for a file in a folder of results that is not one of its results, such as a copied probe."""
    note = note_of(path.parent)
    if note is not None and path.name not in note.files:
        raise StaleError(f"{path}: not a result of {path.parent}; copy it to a folder of its own")


def fits(folder: Path, stamp: Stamp) -> bool:
    """Whether a folder is complete, unmodified and has this stamp."""
    try:
        note = note_of(folder)
    except SubstyleError as error:
        print(f"{error}; recomputing", file=sys.stderr)
        return False
    differing = [] if note is None else note.stamp.differences(stamp)
    if differing:
        print(f"{folder}: recomputing, since it was computed from {'; '.join(differing)}", file=sys.stderr)
    return note is not None and not differing


def is_result(path: Path) -> bool:
    """Whether a file is a result that its folder's note lists, not one that was put there."""
    note = note_of(path.parent)
    return note is not None and path.name in note.files


def compute_into(
    folder: Path,
    before: Stamp,
    stamp: Callable[[], Stamp],
    compute: Callable[[Path], bool | None],
    *,
    beside: int = 1,
) -> None:
    """Compute results and put them in place of a folder.

    Args:
        before: stamp of the inputs.
        stamp: returns the stamp of the inputs as they are now.
        compute: writes the results into an empty folder; returns False if they are not to be marked as complete.
        beside: number of results that are computed at the same time; the seconds kept are divided by it, to add up.

    Raises:
        StaleError: an input changed during the computation.
    """
    began = time.perf_counter()
    with replacing(folder) as new:
        complete = compute(new)
        if differing := before.differences(stamp()):
            raise StaleError(f"{folder}: inputs changed during the computation: {'; '.join(differing)}; rerun it")
        if complete is None or complete:
            finish(new, before, (time.perf_counter() - began) / beside)


def require_fresh(folder: Path, note: Note, now: Stamp, command: str = "") -> None:
    """Raise StaleError if the inputs of a folder's results have changed.

    Args:
        command: command that recomputes them; default: a run of the study.
    """
    differing = note.stamp.differences(now)
    if differing:
        again = "" if command else "; run substyle run with the study"
        raise StaleError(f"{folder}: outdated, computed from {'; '.join(differing)}{again}", command)


def seconds(folders: Iterable[Path]) -> float:
    """Total wall time of complete folders."""
    notes = [note_of(folder) for folder in folders]
    return sum(note.seconds for note in notes if note is not None)


def file_digest(path: Path) -> str:
    """SHA-256 of a file; empty if it does not exist."""
    try:
        return files.file_hash(path)
    except (OSError, ValueError):  # ValueError: invalid file name
        return ""
