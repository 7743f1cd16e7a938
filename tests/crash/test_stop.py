"""Runs that are asked to stop, by Ctrl-C or by a scheduler: they say so in a line and leave a store that goes on."""

from __future__ import annotations

import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.conftest import slow_after
from tests.crash.conftest import Whole
from tests.crash.harness import Witness, differences, embed
from tests.crash.moments import records, until, upon
from tests.crash.processes import Warm, cold
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
    assert witness.look(store) >= 2
    warm(arguments).wait().require(0)
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
