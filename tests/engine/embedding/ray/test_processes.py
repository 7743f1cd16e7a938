"""Whole runs as processes that are killed or interrupted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from tests.conftest import setting
from tests.engine.embedding.ray.shards import embed

from substyle.engine.store import journal
from substyle.pipelines.storage import place

CORES = os.cpu_count() or 1
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CORES < 2, reason=f"Ray needs a CPU for each of two workers; there is {CORES}"),
]
SLOW = "identity,slow"
# so that there is time to kill somebody
PLUGIN = """
import time
from substyle.pipelines.transforms.base import kernel

@kernel("slow", kind="tone", role="train")
def slow(canvas_BSSC, args, keys_B):
    time.sleep(0.2)
    return 255 - canvas_BSSC
"""
_PATIENCE_S = 300.0


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """The plug-in with the transformation `slow`."""
    path = tmp_path / "slow.py"
    path.write_text(PLUGIN)
    return path


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """A run in a process group of its own, on all cores: a worker of pytest-xdist has one, and Ray as many CPUs."""
    with log.open("wb") as out:
        run = subprocess.Popen(
            [sys.executable, "-m", "substyle.engine.cli", *arguments],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    os.sched_setaffinity(run.pid, range(CORES))  # before its interpreter starts a thread
    return run


def until(condition: Callable[[], object], run: subprocess.Popen[bytes] | None = None) -> None:
    """Wait for a condition while a run goes on."""
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        assert run is None or run.poll() is None, "the run has ended"
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.01)


def written(store: Path) -> int:
    """Finished shards."""
    return len(journal.read(place(store)))


def reached(store: Path, shards: int) -> bool:
    """Whether so many are finished."""
    return written(store) >= shards


def below(folder: str) -> list[int]:
    """Processes of the Ray whose folder that is."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if folder in path.read_bytes().decode(errors="replace"):
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended
    return found


def folder_of(driver: subprocess.Popen[bytes]) -> Path:
    """The folder of the Ray that a run has started; others may run beside it."""
    folders = Path("/tmp").glob("substyle-ray-*")
    (mine,) = (folder for folder in folders if any(descends(pid, driver.pid) for pid in below(str(folder))))
    return mine


def descends(pid: int, ancestor: int) -> bool:
    """Whether a process is below another one."""
    while pid not in (0, ancestor):
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return pid == ancestor


def test_a_killed_run_takes_its_ray_with_it(images: Path, slow: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    run = embed(images, store, "--plugin", str(slow), *setting("executor.kind=ray", "executor.workers=2"), suite=SLOW)
    driver = start(run, tmp_path / "log")
    until(partial(reached, store, 1), driver)
    mine = folder_of(driver)
    driver.kill()
    driver.wait()
    until(lambda: not below(str(mine)))
    shutil.rmtree(mine)  # its logs stay


def test_a_ray_of_our_own_is_for_this_user_and_this_machine_alone(
    images: Path, slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    store = tmp_path / "s.zarr"
    run = embed(images, store, "--plugin", str(slow), *setting("executor.kind=ray", "executor.workers=1"), suite=SLOW)
    driver = start(run, tmp_path / "log")
    until(partial(reached, store, 1), driver)
    mine = folder_of(driver)
    open_to = {place for pid in [*below(str(mine)), driver.pid] for place in listening(pid)}
    assert open_to == {"127.0.0.1"}
    assert driver.wait(_PATIENCE_S) == 0
    assert list((tmp_path / "home").rglob("*token*")) == []


def listening(pid: int) -> set[str]:
    """Addresses on which a process listens, by /proc (see proc(5) for its numbers)."""
    sockets = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(path).removeprefix("socket:[").removesuffix("]"))
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                word = bytes.fromhex(fields[1].partition(":")[0])[-4:]  # of IPv6 what an IPv4 address is mapped to
                found.add(".".join(str(byte) for byte in reversed(word)))
    return found
