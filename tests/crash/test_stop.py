"""Runs that are asked to stop, or whose libraries run: they say so in a line, and leave a store that goes on."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.conftest import slow_after
from tests.crash.conftest import Whole, photographs
from tests.crash.harness import Witness, differences, embed, records, until, upon
from tests.crash.processes import Warm, cold
from tests.pipelines.libraries.suites import row, write
from tests.scenarios.scene import STUDY, numbers, read
from tests.toml import toml

from substyle.engine import cli

KINDS = pytest.mark.parametrize(
    ("kind", "code"), slow_after(1, [(signal.SIGINT, 130), (signal.SIGTERM, 143)]), ids=["Ctrl-C", "terminate"]
)


@KINDS
def test_a_stopped_run_says_so_and_keeps_its_shards(
    warm: Warm, finished: Whole, tmp_path: Path, kind: signal.Signals, code: int
) -> None:
    for number in range(10):  # on a busy machine a run may end before it is asked to
        store, witness = tmp_path / f"{number}" / "s.zarr", Witness(finished.store)
        arguments = embed(finished.images, store)
        run = warm(arguments)
        upon(lambda: records(store) >= 2, random.Random(0))(run)  # noqa: B023 -- called before the next turn
        run.signal(kind)
        ended = run.wait()
        if ended.code != 0:
            break
    ended.require(code, "substyle: ", "kept")
    assert len(ended.said) == 1, ended.err
    assert ended.answer["error"]["type"] == ("Interrupted" if kind == signal.SIGINT else "Terminated")
    assert not list(store.glob("lock*"))
    kept = witness.look(store)
    assert kept >= 2
    again = warm(arguments).wait().require(0).answer
    assert again["new_shards"] == again["shards"] - kept  # none that was finished is made again
    witness.look(store)
    assert differences(store, finished.store) == []


def test_a_library_may_raise_an_error_of_its_own_when_it_is_stopped() -> None:
    def compares() -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        raise TypeError("Cannot compare structured arrays")

    with pytest.raises(KeyboardInterrupt), cli._terminable(as_json=False):
        compares()
    with pytest.raises(TypeError), cli._terminable(as_json=False):
        raise TypeError("without a signal")


NATIVE = """
import ctypes, pathlib
from substyle.pipelines.transforms.base import kernel

@kernel("mine_endless", kind="tone", role="train")
def endless(canvas_BSSC, args, keys_B):
    pathlib.Path({flag!r}).touch()
    ctypes.CDLL(None).sleep(3600)
"""


@pytest.mark.slow
@KINDS
def test_a_run_inside_a_library_is_stopped(finished: Whole, tmp_path: Path, kind: signal.Signals, code: int) -> None:
    flag, plugin, store = tmp_path / "flag", tmp_path / "mine.py", tmp_path / "s.zarr"
    plugin.write_text(NATIVE.format(flag=str(flag)))
    words = embed(finished.images, store)
    words[words.index("--suite") + 1] = "identity,mine_endless"
    run = cold([*words, "--plugin", str(plugin)])
    until(flag.exists, run)
    run.signal(kind)
    ended = run.wait().require(code, "substyle: ", "kept")
    assert ended.answer["error"]["type"] == ("Interrupted" if kind == signal.SIGINT else "Terminated")


@pytest.mark.slow
def test_a_study_stopped_at_any_stage_goes_on(finished: Whole, tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_bytes(toml(STUDY))

    def words(out: str) -> list[str]:
        return ["run", str(study), "--images", str(finished.images), "--out", str(tmp_path / out), "--quiet", "--json"]

    began = time.monotonic()
    cold(words("whole")).wait().require(0)
    whole, stopped = time.monotonic() - began, 0
    for part in range(3, 10):
        run = cold(words("stopped"))
        time.sleep(whole * part / 10)
        run.signal(signal.SIGTERM)
        ended = run.wait()
        assert ended.code in (143, -signal.SIGTERM, 0), ended.err
        stopped += ended.code == 143
        assert not list((tmp_path / "stopped").glob("**/lock*.json"))
    assert stopped
    cold(words("stopped")).wait().require(0)
    found = [numbers(read(tmp_path / out / "results.json")) for out in ("whole", "stopped")]
    assert found[0] == found[1]
    names = [
        {path.relative_to(tmp_path / out) for path in (tmp_path / out).rglob(".*")} for out in ("whole", "stopped")
    ]
    assert names[0] == names[1]  # no temporary files


# --- processes of libraries -------------------------------------------------------------------------------------------


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


@pytest.mark.slow
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
