"""Damaged Parquet and Arrow files give an error or failing rows, never a crash."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("table_fuzz.py")


@pytest.mark.parametrize(
    ("first", "last"), [(0, 50), pytest.param(50, 5150, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_damaged_files(tmp_path: Path, first: int, last: int) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(first), str(last)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = ast.literal_eval(done.stdout)
    assert sum(found.values()) == 4 * (last - first)
    assert set(found) == {"refused", "partly", "whole"}
