from __future__ import annotations

import json
from pathlib import Path

import pytest

from substyle.engine.store import lock
from substyle.engine.store.layout import LockedError
from substyle.engine.store.lock import Part
from substyle.errors import ConfigError


def test_lock_whose_file_was_removed_is_not_given_twice(tmp_path: Path) -> None:
    with lock.hold(tmp_path, "first"):
        (tmp_path / lock.NAME).unlink()
        with pytest.raises(LockedError, match="another process holds this lock"), lock.hold(tmp_path, "second"):
            pytest.fail("the lock was given twice")


def test_half_written_lock_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / lock.NAME).write_text('{"run": ')
    with lock.hold(tmp_path, "mine"):
        assert json.loads((tmp_path / lock.NAME).read_text())["run"] == "mine"


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/2/3", "-1/2", "²/3", "1/"])
def test_bad_parts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^part: got .* 2/4$"):
        Part.parse(text)
