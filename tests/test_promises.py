"""Every test that PROMISES.md names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMISES = (ROOT / "tests" / "PROMISES.md").read_text()


def _tests(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text()) if (ROOT / file).is_file() else ast.Module([], [])
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_named_tests_exist() -> None:
    named = re.findall(r"`([\w/.]+\.py)::(\w+)(?:::(\w+))?`", PROMISES)
    assert len(named) > 400
    known = {file: _tests(file) for file, *_ in named}
    assert not [(file, name) for file, *names in named for name in filter(None, names) if name not in known[file]]
