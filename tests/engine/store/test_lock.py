from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from substyle.engine.store import lock
from substyle.engine.store.layout import LockedError
from substyle.engine.store.lock import Part
from substyle.errors import ConfigError


def test_second_run_is_refused_with_the_holder(tmp_path: Path) -> None:
    refused = pytest.raises(LockedError, match=rf"run first \(pid {os.getpid()} on {socket.gethostname()}")
    with lock.hold(tmp_path, "first"), refused, lock.hold(tmp_path, "second"):
        pytest.fail("the lock was given twice")
    with lock.hold(tmp_path, "third"):
        assert json.loads((tmp_path / lock.NAME).read_text())["run"] == "third"
    assert not (tmp_path / lock.NAME).exists()


def test_lock_of_a_dead_process_is_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    holder = {"run": "gone", "host": socket.gethostname(), "pid": dead.pid, "since": "yesterday"}
    (tmp_path / lock.NAME).write_text(json.dumps(holder))
    with lock.hold(tmp_path, "mine"):
        assert json.loads((tmp_path / lock.NAME).read_text())["run"] == "mine"
    assert "run gone" in capsys.readouterr().err


def test_lock_whose_file_was_removed_is_not_given_twice(tmp_path: Path) -> None:
    with lock.hold(tmp_path, "first"):
        (tmp_path / lock.NAME).unlink()
        with pytest.raises(LockedError, match="another process holds this lock"), lock.hold(tmp_path, "second"):
            pytest.fail("the lock was given twice")


def test_lock_of_another_host_stays(tmp_path: Path) -> None:
    holder = {"run": "far", "host": "another-host", "pid": 1, "since": "yesterday"}
    (tmp_path / lock.NAME).write_text(json.dumps(holder))
    with pytest.raises(LockedError, match="another-host"), lock.hold(tmp_path, "mine"):
        pytest.fail("the lock was given twice")
    with lock.hold(tmp_path, "mine", take_over=True):
        assert json.loads((tmp_path / lock.NAME).read_text())["run"] == "mine"


def test_half_written_lock_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / lock.NAME).write_text('{"run": ')
    with lock.hold(tmp_path, "mine"):
        assert json.loads((tmp_path / lock.NAME).read_text())["run"] == "mine"


def test_number_of_a_dead_process_that_another_one_has_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = {"run": "gone", "host": socket.gethostname(), "pid": os.getpid(), "since": "yesterday", "start": "1"}
    (tmp_path / lock.NAME).write_text(json.dumps(holder))
    with lock.hold(tmp_path, "mine"):
        pass
    assert "run gone" in capsys.readouterr().err


def test_parts_stand_side_by_side_but_not_twice_and_not_with_a_whole_run(tmp_path: Path) -> None:
    with lock.hold(tmp_path, "a", Part(1, 3)), lock.hold(tmp_path, "b", Part(3, 3)):
        for part in (Part(1, 3), Part(1, 2), Part()):
            with pytest.raises(LockedError, match=r"run a \(part 1/3, pid"), lock.hold(tmp_path, "c", part):
                pytest.fail("the lock was given twice")
    with lock.hold(tmp_path, "d"), pytest.raises(LockedError, match="run d"), lock.hold(tmp_path, "e", Part(2, 3)):
        pytest.fail("the lock was given twice")
    assert not list(tmp_path.glob("lock*"))


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/2/3", "-1/2", "²/3", "1/"])
def test_bad_parts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^part: got .* 2/4$"):
        Part.parse(text)


def test_every_shard_belongs_to_one_part() -> None:
    parts = [Part.parse(f"{i}/3") for i in (1, 2, 3)]
    assert sorted(shard for part in parts for shard in part.shards(10)) == list(range(10))
    assert list(Part().shards(10)) == list(range(10))
