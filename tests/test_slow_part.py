"""The part of the slow tests that continuous integration runs."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from tests.conftest import _END, NO_TIME, ROOT, _in_time, in_turn

NAMES = [
    f"tests/{room}/test_{file}.py::test_{i}" for room in ("kernels", "engine/store") for file in "ab" for i in range(9)
]


def files(names: list[str]) -> list[str]:
    return [name.partition("::")[0] for name in names]


def test_commits_try_other_tests() -> None:
    orders = [in_turn(NAMES, commit, []) for commit in ("1", "2", "3")]
    assert all(sorted(order) == sorted(NAMES) for order in orders)
    assert len({frozenset(order[:12]) for order in orders}) == 3
    assert in_turn(NAMES[::-1], "1", []) == orders[0]


def test_every_file_gets_its_turn() -> None:
    order = files(in_turn(NAMES, "1", []))
    assert all(len(set(order[first : first + 12])) == 4 for first in (0, 12, 24))


def test_what_has_changed_comes_first() -> None:
    of_file = files(in_turn(NAMES, "1", ["tests/kernels/test_b.py", "README.md"]))
    assert set(of_file[:9]) == {"tests/kernels/test_b.py"}
    beside = files(in_turn(NAMES, "1", ["engine/store/verify.py"]))
    assert set(beside[:18]) == {"tests/engine/store/test_a.py", "tests/engine/store/test_b.py"}


def test_an_exception_of_a_stopped_test_is_no_failure() -> None:
    def raises_when_interrupted(seconds: float) -> None:
        with _in_time(SimpleNamespace(config=SimpleNamespace(stash={_END: time.monotonic() + seconds}))):
            try:
                time.sleep(0.2)
            finally:
                raise OSError("of the test")

    with pytest.raises(pytest.skip.Exception, match=NO_TIME):
        raises_when_interrupted(0.05)
    with pytest.raises(OSError, match="of the test"):
        raises_when_interrupted(100)


@pytest.mark.slow
def test_no_test_starts_or_goes_on_when_time_is_up() -> None:
    def run(seconds: str) -> str:
        command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "--slow-part", seconds]
        path = "tests/pipelines/sources/test_tar_fuzz.py"
        done = subprocess.run([*command, path], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return done.stdout

    assert "slow tests: 0 of 1 ran in 0 s" in (said := run("0"))
    assert NO_TIME in said
    assert "slow tests: 0 of 1 ran in 0.2 s" in run("0.2")
