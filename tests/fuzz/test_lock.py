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
