"""Locks in a bucket: one holder at a time, takeover of the dead, and a holder that knows when it has lost."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from tests.object_server import Fault, Server

from substyle.engine.store import lock
from substyle.engine.store.layout import LockedError, StoreError
from substyle.engine.store.lock import Holder, Part, system
from substyle.pipelines.storage import ObjectPlace

FAR = Holder("far", "another-host", 1, "yesterday", system="another system")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that are renewed ten times a second and go stale after one."""
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(lock, "STALE", 1.0)
    monkeypatch.setattr(lock, "STALE", 1.0)


def dead() -> Holder:
    """A process of this host that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Holder("gone", socket.gethostname(), process.pid, "yesterday", "1", system=system())


def test_a_second_run_is_refused_with_the_holder(bucket: ObjectPlace) -> None:
    holder = rf"run first \(pid {os.getpid()} on {socket.gethostname()}.* [0-9]+ s ago"
    refused = pytest.raises(LockedError, match=holder)
    with lock.hold(bucket, "first"), refused, lock.hold(bucket, "second"):
        pytest.fail("the lock was given twice")
    with lock.hold(bucket, "third"):
        assert json.loads((bucket / lock.NAME).read_bytes())["run"] == "third"
    assert not (bucket / lock.NAME).is_file()


def test_parts_stand_side_by_side_but_not_twice_and_not_with_a_whole_run(bucket: ObjectPlace) -> None:
    with lock.hold(bucket, "a", Part(1, 3)), lock.hold(bucket, "b", Part(3, 3)):
        for part in (Part(1, 3), Part(1, 2), Part()):
            with pytest.raises(LockedError, match=r"run a \(part 1/3, pid"), lock.hold(bucket, "c", part):
                pytest.fail("the lock was given twice")
    assert not list(bucket.glob(lock.LOCKS))


def test_of_many_that_race_for_a_lock_one_has_it(bucket: ObjectPlace) -> None:
    won: list[str] = []
    refused: list[str] = []
    start, over = threading.Barrier(6), threading.Event()

    def race(name: str) -> None:
        start.wait()
        try:
            with lock.hold(bucket, name):
                won.append(name)
                over.wait()
        except LockedError as error:
            refused.append(str(error))
            if len(refused) == 5:
                over.set()

    threads = [threading.Thread(target=race, args=(f"run{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert all(f"run {won[0]}" in text for text in refused)


@pytest.mark.parametrize("what", [lock.NAME, lock.MUTEX])
def test_what_a_dead_process_held_is_taken_over(
    bucket: ObjectPlace, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (bucket / what).write(dead().to_json())
    with lock.hold(bucket, "mine"):
        assert json.loads((bucket / lock.NAME).read_bytes())["run"] == "mine"
    assert "run gone" in capsys.readouterr().err


@pytest.mark.slow
def test_another_host_is_believed_while_it_renews_and_taken_over_after(
    bucket: ObjectPlace, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del quick
    place = bucket / lock.NAME
    place.write(FAR.to_json())
    with pytest.raises(LockedError, match=r"another-host.*--take-over"), lock.hold(bucket, "mine"):
        pytest.fail("the lock was given twice")
    time.sleep(2.1)  # times of objects are whole seconds
    with lock.hold(bucket, "mine"):
        pass
    assert "run far" in capsys.readouterr().err
    monkeypatch.setattr(lock, "STALE", 1000.0)
    place.write(FAR.to_json())
    with lock.hold(bucket, "mine", take_over=True):
        assert json.loads(place.read_bytes())["run"] == "mine"


def test_take_over_takes_nothing_from_a_process_that_runs_here(bucket: ObjectPlace) -> None:
    refused = pytest.raises(LockedError, match="run first")
    with lock.hold(bucket, "first"), refused, lock.hold(bucket, "second", take_over=True):
        pytest.fail("the lock was given twice")


def test_a_container_of_the_same_name_counts_as_another_host(bucket: ObjectPlace) -> None:
    # its process has a number that is free here
    (bucket / lock.NAME).write(replace(dead(), system="another space").to_json())
    with pytest.raises(LockedError, match="run gone"), lock.hold(bucket, "mine"):
        pytest.fail("the lock was given twice")


def test_a_held_lock_is_renewed(bucket: ObjectPlace, quick: None) -> None:
    del quick
    with lock.hold(bucket, "mine"):
        first = json.loads((bucket / lock.NAME).read_bytes())
        time.sleep(1.5)  # longer than it stays fresh
        lock.require(bucket)
        later = json.loads((bucket / lock.NAME).read_bytes())
    assert later["beat"] >= first["beat"] + 3
    assert {**later, "beat": 0} == {**first, "beat": 0}


def test_a_holder_whose_lock_was_taken_over_stops_and_leaves_it(bucket: ObjectPlace, quick: None) -> None:
    del quick
    place = bucket / lock.NAME
    with lock.hold(bucket, "mine"):
        place.write(FAR.to_json())
        time.sleep(0.5)
        with pytest.raises(LockedError, match=str(bucket)):
            lock.require(bucket)
        with pytest.raises(LockedError, match=str(bucket)), lock.mutex(bucket):
            pytest.fail("the mutex was given to one who has lost the store")
    assert Holder.read(place.read_bytes()) == FAR


def test_a_holder_that_cannot_renew_knows_when_it_is_too_late(bucket: ObjectPlace, server: Server, quick: None) -> None:
    del quick
    with lock.hold(bucket, "mine"), server.failing(Fault("PUT", lock.NAME)):
        time.sleep(1.5)
        with pytest.raises(LockedError, match=r"\b1 s\b"):
            lock.require(bucket)


@pytest.mark.parametrize("after", range(6))
@pytest.mark.parametrize("what", [lock.NAME, lock.MUTEX])
def test_an_answer_that_is_lost_is_no_loss(
    bucket: ObjectPlace, server: Server, what: str, after: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with server.failing(Fault("PUT", f"/{what}$", times=1, status=0, after=after)):
        for run in ("mine", "again"):
            with lock.hold(bucket, run):
                lock.require(bucket)
    assert [p.name for p, _ in bucket.walk()] == [lock.MUTEX]
    assert capsys.readouterr().err == ""


def test_an_answer_to_a_renewal_that_is_lost_is_no_loss(bucket: ObjectPlace, server: Server, quick: None) -> None:
    del quick
    with lock.hold(bucket, "mine"), server.failing(Fault("PUT", lock.NAME, times=2, status=0)) as faults:
        while faults[0].seen < 5:
            time.sleep(0.05)
        lock.require(bucket)
        assert Holder.read((bucket / lock.NAME).read_bytes()).run == "mine"


def test_a_lock_that_was_removed_is_lost(bucket: ObjectPlace, quick: None) -> None:
    del quick
    with lock.hold(bucket, "mine"):
        (bucket / lock.NAME).remove()
        time.sleep(0.5)
        with pytest.raises(LockedError, match=str(bucket)):
            lock.require(bucket)
    assert not (bucket / lock.NAME).is_file()


def test_one_process_at_a_time_has_the_mutex(bucket: ObjectPlace) -> None:
    inside = 0
    most = []

    def enter() -> None:
        nonlocal inside
        for _ in range(3):
            with lock.mutex(bucket):
                inside += 1
                most.append(inside)
                time.sleep(0.01)
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 12


def test_a_server_without_conditional_writes_is_refused(bucket: ObjectPlace, server: Server) -> None:
    server.conditional = False
    refused = pytest.raises(StoreError, match="If-None-Match")
    with refused, lock.mutex(bucket):
        pytest.fail("the mutex was given")
    assert not list(bucket.walk())
    server.conditional = True
    with server.failing(Fault("PUT", lock.MUTEX, status=501)), refused, lock.mutex(bucket):
        pytest.fail("the mutex was given")
