"""A reader that stands still at each of its readings while a run goes on to its end, and then reads the rest."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.crash.conftest import Whole
from tests.crash.harness import PIXELS, SUITE, copy, embed, transient, whole_table
from tests.crash.moments import after
from tests.crash.processes import Fault, Limits, Run, Warm
from tests.crash.warm import digests


def stopped(process: int) -> bool:
    """Whether a process stands still."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def stand_still(run: Run) -> None:
    """Wait until the run has stopped itself, or ended."""
    while run.running() and not stopped(run.pid):
        after(random.Random(0), 0.01)(run)


def read_around(
    warm: Warm,
    before: Path,
    folder: Path,
    arguments: Sequence[str],
    suites: Sequence[str],
    *,
    least: int,
    readings: int = 5,
    first: int = 1,
) -> None:
    """For every other reading of a table: stop before it, let a run on the store end, read the rest.

    A table has all transformations of one of the suites, no fewer photographs than ``least``, and rows of the store as
    the run leaves it. Only where ``least`` is 0 may there be nothing to read. There are at least so many readings, and
    ``first`` says which of them are tried.
    """
    assert "{store}" in arguments
    whole: dict[str, dict[str, str]] = {}
    failures, at, more = [], first - 2, True
    while more:
        at += 2
        store = copy(before, folder / f"{at}")
        reader = warm.table(store, PIXELS, Fault(str(store.parent), at, "SIGSTOP", reads=True))
        stand_still(reader)
        more = reader.running()
        warm([str(store) if word == "{store}" else word for word in arguments]).wait().require(0)
        if more:
            reader.signal(signal.SIGCONT)
        ended = reader.wait().require(0)
        whole = whole or digests(whole_table(store, PIXELS))
        rows: dict[str, dict[str, str]] = ended.answer.get("rows", {})
        if "error" in ended.answer:
            wrong = bool(least) or not transient(ended.answer["error"])
        else:
            known = all(whole[name].get(key) == x for name, by_key in rows.items() for key, x in by_key.items())
            wrong = set(rows) not in [set(suite.split(",")) for suite in suites] or not known
            wrong = wrong or min(map(len, rows.values()), default=0) < least
        if wrong:
            what = ended.changes[at - 1] if len(ended.changes) >= at else "the end"
            shown = ended.answer.get("error") or {name: len(by_key) for name, by_key in rows.items()}
            failures.append(f"stopped at {what}: {shown}")
    assert at > readings, (ended.changes, ended.answer.keys())
    assert not failures, f"{len(failures)} of {at} readings went wrong:\n" + "\n".join(failures)


def cut(warm: Warm, reference: Whole, folder: Path, at: str) -> Path:
    """A store whose run was killed at the first change of a path that holds a text."""
    (folder / "counted").mkdir(parents=True)
    store = folder / "counted" / "s.zarr"
    made = warm(embed(reference.images, store), Limits(fault=Fault(str(store.parent), 0, ""))).wait().changes
    number = next(i for i, change in enumerate(made, start=1) if at in change)
    (folder / "cut").mkdir()
    store = folder / "cut" / "s.zarr"
    fault = Fault(str(store.parent), number, "SIGKILL")
    warm(embed(reference.images, store), Limits(fault=fault)).wait().require(-9)
    return store


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "least", "readings", "first"),
    [
        ("/3-", 0, 3, 1),
        ("catalog/.", 0, 3, 2),
        ("c.0.1.0", 8, 5, 1),
        ("journal/tables/.r", 12, 5, 2),
    ],
    ids=["no array yet", "no catalog yet", "a shard done", "all done, not compacted"],
)
def test_a_reader_stands_still_while_a_store_is_finished(
    warm: Warm, tiny: Whole, tmp_path: Path, point: str, least: int, readings: int, first: int
) -> None:
    """Without arrays the catalog is empty, which takes three readings to see."""
    arguments = embed(tiny.images, Path("{store}"))
    before = cut(warm, tiny, tmp_path, point)
    read_around(warm, before, tmp_path / "read", arguments, [SUITE], least=least, readings=readings, first=first)
