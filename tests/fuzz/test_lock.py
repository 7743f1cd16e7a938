"""Lock files of any content: the store is given or refused by name, and never left without a lock."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import strategies as st
from tests.fuzz.harness import attempt, examine, put
from tests.fuzz.mutations import spoilt_json

from substyle.engine.store import lock
from substyle.engine.store.files import started
from substyle.errors import ConfigError

HOLDER = {"run": "r", "host": socket.gethostname(), "pid": os.getpid(), "since": "now", "start": started(os.getpid())}


@pytest.mark.parametrize("holder", [HOLDER, {**HOLDER, "part": [1, 3]}, {**HOLDER, "host": "far"}])
@pytest.mark.parametrize("part", [lock.WHOLE, lock.Part(2, 3)])
def test_any_lock_file(tmp_path: Path, holder: dict[str, object], part: lock.Part, cases: int) -> None:
    path = tmp_path / "lock.json"

    def take() -> bool:
        with lock.hold(tmp_path, "mine", part):
            assert json.loads((tmp_path / part.lock_name).read_text())["run"] == "mine"
        return True

    def check(content: bytes | None) -> None:
        put(path, content)
        if attempt(take, names=(tmp_path.name,)):
            assert not (tmp_path / part.lock_name).exists()
        else:
            assert path.is_dir() == (content is None)

    examine(check, st.one_of(spoilt_json(json.dumps(holder).encode()), st.none()), cases=cases // 6)


@pytest.mark.parametrize(
    "changes",
    [{"pid": 10**30}, {"pid": "1"}, {"pid": True}, {"part": []}, {"part": ["1", "2"]}, {"host": None}, {"extra": 1}],
)
def test_a_lock_that_no_run_writes_is_taken_over(tmp_path: Path, changes: dict[str, object]) -> None:
    (tmp_path / lock.NAME).write_text(json.dumps(HOLDER | changes))
    with lock.hold(tmp_path, "mine"):
        assert json.loads((tmp_path / lock.NAME).read_text())["run"] == "mine"


def test_a_part_of_very_many_digits_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^part: got .* 2/4$"):
        lock.Part.parse("9" * 5_000 + "/1")
