"""Kill, pause and watch runs on a store, and hold the store against one that no run was ever killed on."""

from __future__ import annotations

import fcntl
import functools
import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tests.conftest import setting
from tests.crash.processes import Ended, Run, Start

from substyle.engine.store import catalog, journal, shards
from substyle.engine.store.layout import StoreError
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, load_table
from substyle.pipelines.storage import place

PIXELS = "control:pixels"
STATISTICS = "control:statistics"
COMPILED = "control:random:test_efficientnet"
SUITE = "identity,grayscale,gaussian_noise"
MORE = f"{SUITE},gaussian_blur"
MUTEX = ".mutex"
LOCKS = (MUTEX, ".lock")  # empty files that stay
ALLOWED_UNFINISHED = ("no store found", "no backbone", "no finished shard")


def embed(
    images: Path | None,
    store: Path,
    *more: str,
    backbones: Sequence[str] = (PIXELS,),
    suite: str = SUITE,
    rows: int = 8,
) -> list[str]:
    return [
        "embed", *([str(images)] if images else []), "--store", str(store), "--suite", suite,
        *setting("canvas=64", "embed.batch=4", f"embed.shard_rows={rows}", "threads=1"),
        "--quiet", "--json",
        *(word for name in backbones for word in ("--backbone", name)), *more,
    ]  # fmt: skip


# --- comparing --------------------------------------------------------------------------------------------------------


def differences(store: Path, reference: Path, *, loose: bool = False) -> list[str]:
    """What sets a finished store apart from a reference; empty where they are the same.

    Every file is compared byte for byte, but for the store's UUID, a backbone's measured ``rate``, the seconds and run
    of journal records, marks of files, and how records are gathered. What only one of them has is a
    difference: so are leftovers.

    Args:
        loose: journal records need not have been compacted.
    """
    here, there = _files(store), _files(reference)
    found = [f"{name}: only in {'the store' if name in here else 'the reference'}" for name in here ^ there]
    found += [f"{name}: another content" for name in sorted(here & there) if not _same(store / name, reference / name)]
    found += [f"{path.name}: left beside the store" for path in store.parent.iterdir() if path != store]
    if journal_content(store) != journal_content(reference):
        found.append("the journals say different things")
    if catalog_content(store) != catalog_content(reference):
        found.append("the catalogs say different things")
    kinds = (".parquet", ".json") if loose else (".parquet",)
    inside = (path for path in (store / journal.FOLDER).rglob("*") if not path.is_dir())
    left = [path for path in inside if path.suffix not in kinds]
    found += [f"{path.name}: left in the journal" for path in left]
    return sorted(found)


def journal_content(store: Path) -> list[dict[str, Any]]:
    """The journal's records without their time and run, in an order that neither of these decides."""
    said = [{k: v for k, v in asdict(r).items() if k not in ("seconds", "run")} for r in journal.read(place(store))]
    for record in said:
        for note in (*record["images"], *record["files"]):
            note.pop("mark")  # of a file that was written a moment before the first run there is none
    return sorted(said, key=json.dumps)


def catalog_content(store: Path) -> list[dict[str, Any]]:
    """What the catalog says, without measured rates."""
    said = catalog.read(catalog.files(place(store)))
    return [
        {
            "facts": {k: v for k, v in entry.facts.items() if k != "rate"},
            "transformations": {name: made.hash for name, made in said.transformations[slug].items()},
        }
        for slug, entry in said.backbones.items()
    ]


def _files(store: Path) -> set[str]:
    names = {path.relative_to(store).as_posix() for path in store.rglob("*") if not path.is_dir()}
    apart = (f"{journal.FOLDER}/", f"{catalog.FOLDER}/")
    return {name for name in names if not name.startswith((*LOCKS, *apart))}


def _same(one: Path, other: Path) -> bool:
    first, second = one.read_bytes(), other.read_bytes()
    if first == second:
        return True
    if one.name not in ("zarr.json", "substyle.json"):
        return False
    return _fixed(first) == _fixed(second)


def _fixed(text: bytes) -> dict[str, Any]:
    """Metadata without what is another in every store: a measured rate, the UUID and the digest over it."""
    data: dict[str, Any] = json.loads(text)
    data.get("attributes", {}).get("substyle", {}).pop("rate", None)
    return {key: value for key, value in data.items() if key not in ("uuid", "digest")}


@functools.cache
def whole_table(store: Path, backbone: str) -> EmbeddingTable:
    return load_table(EmbeddingStore.open(store), backbone)


def same_rows(table: EmbeddingTable, whole: EmbeddingTable) -> None:
    """Assert that a table holds nothing but finite rows of the whole one, transformation by transformation."""
    assert table.transformations, "a table of no transformation"
    assert np.isfinite(table.x_TND).all()
    at = [whole.keys.index(key) for key in table.keys]
    for t, name in enumerate(table.transformations):
        np.testing.assert_array_equal(table.x_TND[t], whole.x_TND[whole.transformations.index(name)][at])


def table_or_none(store: EmbeddingStore | Path, backbone: str) -> EmbeddingTable | None:
    """The table of a store that is being filled, None while there is nothing to read. Fails on any other error."""
    try:
        return load_table(EmbeddingStore.open(store) if isinstance(store, Path) else store, backbone)
    except StoreError as error:
        said = str(error)
    assert transient(said), said
    return None


def transient(said: str) -> bool:
    return any(text in said for text in ALLOWED_UNFINISHED)


# --- killing ----------------------------------------------------------------------------------------------------------


class Witness:
    """What a store has promised so far: finished shards stay and are whole, and what can be read is right.

    Args:
        reference: the store that was never interrupted; None checks no values.
        backbones: whose tables are read.
    """

    def __init__(self, reference: Path | None, backbones: Sequence[str] = (PIXELS,)) -> None:
        self.reference, self.backbones = reference, backbones
        self.finished: set[tuple[int, str, str]] = set()

    def look(self, store: Path) -> int:
        """Check a store that no run is writing to; returns its number of finished shards, over all backbones."""
        try:
            opened = EmbeddingStore.open(store)
        except StoreError:
            assert not self.finished, "a store with finished shards cannot be opened any more"
            assert not store.exists() or not catalog.exists(store), "a store that is there cannot be opened"
            return 0
        now = set()
        for record in journal.read(place(store)):
            array = opened.catalog.array(record.backbone, next(iter(record.checksums)))
            file = array.shard(opened.path, record.shard)
            problem = shards.check(file, opened.shape(array), array.transformations, record.checksums)[1]
            assert not problem, f"{file} is not what was recorded: {problem}"
            now |= {(record.shard, record.backbone, name) for name in record.checksums}
        assert self.finished <= now, f"finished shards were lost: {self.finished - now}"
        self.finished = now
        for backbone in self.backbones:
            table = table_or_none(opened, backbone)
            if table and self.reference:
                same_rows(table, whole_table(self.reference, backbone))
        return len({(shard, slug) for shard, slug, _ in now})


def copy(store: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    shutil.copytree(store, folder / store.name)
    return folder / store.name


def uninterrupted(start: Start, arguments: Sequence[str]) -> tuple[Ended, float]:
    began = time.monotonic()
    ended = start(arguments).wait().require(0)
    return ended, time.monotonic() - began


# --- moments ----------------------------------------------------------------------------------------------------------


def fill(
    start: Start, arguments: Sequence[str], store: Path, moment: Callable[[Run], None], *, kills: int, witness: Witness
) -> int:
    """Kill runs on a store until ``kills`` hit or the store is finished; then let one end. Returns how many hit.

    Args:
        moment: waits for the time to kill; the run may have ended before.
    """
    hit = 0
    while hit < kills:
        run = start(arguments)
        moment(run)
        if not run.running():
            run.wait().require(0)
            witness.look(store)
            return hit
        ended = run.kill()
        if ended.code == 0:  # it ended between the question and the signal
            return hit
        ended.require(-9)
        hit += 1
        witness.look(store)
    start(arguments).wait().require(0)
    witness.look(store)
    return hit


def after(rng: random.Random, seconds: float) -> Callable[[Run], None]:
    """A moment uniform over so many seconds from the start."""

    def wait(run: Run) -> None:
        end = time.monotonic() + rng.uniform(0, seconds)
        while time.monotonic() < end and run.running():
            time.sleep(0.001)

    return wait


def upon(condition: Callable[[], bool], rng: random.Random, seconds: float = 0.0) -> Callable[[Run], None]:
    """A moment uniform over so many seconds from when the condition first holds."""

    def wait(run: Run) -> None:
        while not condition() and run.running():
            pass
        after(rng, seconds)(run)

    return wait


def records(store: Path) -> int:
    return len(list((store / journal.FOLDER).glob("*.json")))


def until(condition: Callable[[], bool], run: Run) -> None:
    """Wait until the condition holds while the run goes on, however busy the machine is. Fails when it ends before."""
    while not condition():
        if not run.running():
            ended = run.wait()
            raise AssertionError(f"it ended too early: exit {ended.code}\n{ended.err}")
        time.sleep(0.003)


@contextmanager
def paused(run: Run, store: Path) -> Iterator[None]:
    """The run stands still for the block, at a moment when it does not have the store's mutex."""
    run.signal(signal.SIGSTOP)
    while not _free(store / MUTEX):
        run.signal(signal.SIGCONT)
        time.sleep(0.001)
        run.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        run.signal(signal.SIGCONT)


def _free(mutex: Path) -> bool:
    time.sleep(0.05)  # a signal arrives in a while
    with mutex.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def begun(start: Start, images: Path, reference: Path, store: Path) -> Witness:
    """A store of which a few shards are finished, made by a run that was killed."""
    run = start(embed(images, store))
    until(lambda: records(store) >= 2, run)
    run.kill()
    witness = Witness(reference)
    assert witness.look(store) >= 2
    return witness
