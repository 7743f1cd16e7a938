"""Runs with transformations of other libraries, which are computed in processes of their own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from tests.crash.conftest import photographs
from tests.crash.harness import embed
from tests.crash.moments import until
from tests.crash.processes import cold
from tests.pipelines.libraries.suites import row, write

pytestmark = pytest.mark.slow


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A suite file with five transformations of each library."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "suite"), os.environ.get("PYTHONPATH", "")]))
    return str(write(tmp_path / "suite"))


def children(pid: int) -> list[int]:
    own = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*own, *(further for child in own for further in children(child))]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


WAITS = """
import os, pathlib, time

def waits(image):
    pathlib.Path(__file__).with_name(f"{os.getpid()}.begun").touch()
    time.sleep(3600)
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_the_run(tmp_path: Path, suite: str, kind: signal.Signals) -> None:
    """Each is inside a library when the run ends."""
    images, folder = photographs(tmp_path / "images", 8), Path(suite).parent
    (folder / "waiting.py").write_text(WAITS)
    words = embed(images, tmp_path / "s.zarr", "--allow-plugins", "--set", "threads=2")
    words[words.index("--suite") + 1] = str(write(folder, row('name = "p_waits", of = "python:waiting:waits"')))
    run = cold(words)
    until(lambda: len(list(folder.glob("*.begun"))) == 2, run)
    started = children(run.pid)
    assert len(started) >= 2
    os.kill(run.pid, kind)  # it alone, and not its group
    run.wait()
    while any(map(running, started)):
        time.sleep(0.01)
