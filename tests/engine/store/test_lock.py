from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from substyle.engine.store import lock


def test_second_run_is_refused_with_the_holder(tmp_path: Path) -> None:
    refused = pytest.raises(lock.LockedError, match=rf"run first \(pid {os.getpid()} on {socket.gethostname()}")
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
    assert "taking over the lock of run gone" in capsys.readouterr().err


def test_lock_of_another_host_stays(tmp_path: Path) -> None:
    holder = {"run": "far", "host": "another-host", "pid": 1, "since": "yesterday"}
    (tmp_path / lock.NAME).write_text(json.dumps(holder))
    with pytest.raises(lock.LockedError, match="another-host"), lock.hold(tmp_path, "mine"):
        pytest.fail("the lock was given twice")


def test_half_written_lock_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / lock.NAME).write_text('{"run": ')
    with lock.hold(tmp_path, "mine"):
        assert json.loads((tmp_path / lock.NAME).read_text())["run"] == "mine"
