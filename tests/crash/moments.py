"""Moments at which runs on a store are killed, paused or asked something."""

from __future__ import annotations

import fcntl
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.crash.harness import MUTEX, Witness, embed
from tests.crash.processes import Run, Start

from substyle.engine.store import journal


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
