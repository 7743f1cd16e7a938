"""What counts as code, and that growth fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmarks import size

SOURCE = '''"""A module.

With a docstring."""

from os import (
    path,
)

# a comment


def f(x):
    """Return x."""
    text = """not
a docstring"""
    return x + 1  # and why
'''


def test_docstrings_comments_blank_lines_and_imports_do_not_count(tmp_path: Path) -> None:
    assert size.lines_of_code(SOURCE) == 4
    (tmp_path / "a.py").write_text("def f(x):  # why\n    return x + 1\n")
    assert size.tokens(tmp_path / "a.py") == 6 + 1 + 4 + 1  # with an indent and its end


def test_growth_fails_and_shrinkage_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["size"])
    monkeypatch.setattr(size, "FILE", tmp_path / "size.json")
    monkeypatch.setattr(size, "sizes", lambda: {"lines of core": 11, "commands": 3})
    for kept, code, said in (
        ({"lines of core": 11, "commands": 3}, 0, ""),
        ({"lines of core": 10, "commands": 3}, 1, "grown: lines of core: 10 → 11"),
        ({"commands": 3}, 1, "grown: lines of core: 0 → 11"),
        ({"lines of core": 12, "commands": 3}, 0, "smaller: lines of core: 12 → 11"),
    ):
        size.FILE.write_text(json.dumps(kept))
        assert size.main() == code
        assert capsys.readouterr().out.startswith(said)


def test_every_part_is_counted() -> None:
    found = size.sizes()
    assert {f"{what} of {part}" for what in ("lines", "tokens") for part in ("core", "extensions", "suites")} <= {
        *found
    }
    assert min(found.values()) > 0
