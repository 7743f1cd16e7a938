"""How large is the code? Fails if a part has grown.

    python -m benchmarks.size [--write]

Counts lines of code (without docstrings, comments, blank lines, imports) and tokens of core, extensions and suites,
raw lines of tests and benchmarks, commands and settings. `make lint` compares them with ``size.json``, which
``--write`` updates.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import tokenize
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from substyle.engine.commands.arguments import parser as command_line
from substyle.engine.study.file import study_schema

ROOT = Path(__file__).resolve().parent.parent
FILE = Path(__file__).with_name("size.json")
APART = {"engine/extensions": "extensions", "pipelines/transforms/suites": "suites"}  # the rest is core
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING, tokenize.ENDMARKER)


def lines_of_code(source: str) -> int:
    """Number of lines without docstrings, comments, blank lines and imports."""
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            skipped |= {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            skipped |= {*range(first.lineno, (first.end_lineno or first.lineno) + 1)}
    lines = enumerate(source.splitlines(), 1)
    return sum(1 for i, line in lines if line.strip() and not line.strip().startswith("#") and i not in skipped)


def tokens(path: Path) -> int:
    with path.open("rb") as file:
        return sum(token.type not in SILENT for token in tokenize.tokenize(file.readline))


def sizes() -> dict[str, int]:
    found: Counter[str] = Counter()
    for top in ("src/substyle", "kernels", "pipelines", "engine"):
        for path in (ROOT / top).rglob("*.py"):
            folder = path.relative_to(ROOT).as_posix()
            part = next((name for start, name in APART.items() if folder.startswith(f"{start}/")), "core")
            found[f"lines of {part}"] += lines_of_code(path.read_text())
            found[f"tokens of {part}"] += tokens(path)
    for top in ("tests", "benchmarks"):
        found[f"raw lines of {top}"] = sum(len(p.read_text().splitlines()) for p in (ROOT / top).rglob("*.py"))
    commands = next(each for each in command_line()._actions if isinstance(each, argparse._SubParsersAction))
    found["commands"] = len(commands.choices)
    study = study_schema()
    found["settings"] = _settings(study, study["$defs"])
    return dict(sorted(found.items()))


def _settings(table: Any, definitions: Any) -> int:  # noqa: ANN401 - JSON Schema
    """Number of settings in a table of study files."""
    table = definitions[table["$ref"].rpartition("/")[2]] if "$ref" in table else table
    inner = [table, *table.get("anyOf", ())]
    own = next((each["properties"] for each in inner if "properties" in each), None)
    return 1 if own is None else sum(_settings(each, definitions) for each in own.values())


def compared(found: Mapping[str, int], kept: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Parts that have grown, and parts that have shrunk, with both sizes."""
    names = {**kept, **found}
    sizes = {name: (kept.get(name, 0), found.get(name, 0)) for name in names}
    grown = [f"{name}: {before} → {now}" for name, (before, now) in sizes.items() if now > before]
    return grown, [f"{name}: {before} → {now}" for name, (before, now) in sizes.items() if now < before]


def main() -> int:
    parser = argparse.ArgumentParser(prog="size", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the present numbers")
    options, found = parser.parse_args(), sizes()
    if options.write:
        FILE.write_text(json.dumps(found, indent=1) + "\n")
    grown, shrunk = compared(found, json.loads(FILE.read_text()))
    for line in grown:
        print(f"grown: {line}; remove as much elsewhere, or say why and run python -m benchmarks.size --write")
    for line in shrunk:
        print(f"smaller: {line}; run python -m benchmarks.size --write to keep it so")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
