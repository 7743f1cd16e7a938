"""Locks in a bucket: one holder at a time, takeover of the dead, and a holder that knows when it has lost."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest
from tests.object_server import Fault, Server

from substyle.engine.store import lock
from substyle.engine.store.layout import LockedError, StoreError
from substyle.engine.store.lock import Holder, system
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


def test_a_lock_that_was_removed_is_lost(bucket: ObjectPlace, quick: None) -> None:
    del quick
    with lock.hold(bucket, "mine"):
        (bucket / lock.NAME).remove()
        time.sleep(0.5)
        with pytest.raises(LockedError, match=str(bucket)):
            lock.require(bucket)
    assert not (bucket / lock.NAME).is_file()


def test_a_server_without_conditional_writes_is_refused(bucket: ObjectPlace, server: Server) -> None:
    server.conditional = False
    refused = pytest.raises(StoreError, match="If-None-Match")
    with refused, lock.mutex(bucket):
        pytest.fail("the mutex was given")
    assert not list(bucket.walk())
    server.conditional = True
    with server.failing(Fault("PUT", lock.MUTEX, status=501)), refused, lock.mutex(bucket):
        pytest.fail("the mutex was given")


def test_a_holder_that_cannot_renew_knows_when_it_is_too_late(bucket: ObjectPlace, server: Server, quick: None) -> None:
    del quick
    with lock.hold(bucket, "mine"), server.failing(Fault("PUT", lock.NAME)):
        time.sleep(1.5)
        with pytest.raises(LockedError, match=r"\b1 s\b"):
            lock.require(bucket)
