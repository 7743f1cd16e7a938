"""Every row of "What identifies a result" in docs/stores.md names tests that exist here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "stores.md"


def test_every_row_names_tests_that_exist() -> None:
    section = PAGE.read_text().partition("## What identifies a result\n")[2]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert len(lines) > 30
    known = {
        node.name
        for path in (*HERE.glob("test_*.py"), *HERE.parent.glob("extensions/*/test_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    for line in lines[2:]:
        cells = line.strip("|").split(" | ")
        assert len(cells) == 4, line
        named = re.findall(r"`(test_\w+)`", cells[3])
        assert named, line
        assert set(named) <= known, line
