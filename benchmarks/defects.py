"""Which seeded defects of the core do the fast tests catch?

    python -m pytest -m "not slow" --cov=engine --cov=kernels --cov=pipelines --cov-context=test  # in TREE
    python -m benchmarks.defects TREE --coverage TREE/.coverage
    python -m benchmarks.defects TREE --coverage TREE/.coverage --caught benchmarks/results/defects.json  # still?

Each defect of ``defects.json`` changes one line: 80 are drawn by cosmic-ray (seed 0, weighted by lines of code), 20
undo mends of wrong numbers and of unsafe input. TREE is a clone with an environment of its own, in which each is made,
the tests that run its line are run until one fails, and the line is restored. ``benchmarks/results/defects.json`` keeps
which were caught, by commit; a defect that no test runs has survived. With ``--caught``, the defects that an earlier
result caught are made again, for ``defects_again.json``: tests may go while all of these are caught.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("defects.json")
RESULTS = Path(__file__).parent / "results"
LIMIT = 3600  # seconds for the tests of a defect; one that never ends is caught as a user would notice it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--coverage", type=Path, required=True, help="of the fast tests of TREE, with a context a test")
    parser.add_argument("--caught", type=Path, help="an earlier result, whose caught defects are made again")
    options = parser.parse_args()
    tree: Path = options.tree.resolve()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, check=True, capture_output=True, text=True)
    found: list[dict[str, Any]] = []
    results, defects = RESULTS / "defects.json", json.loads(FILE.read_text())
    if options.caught is not None:
        earlier = json.loads(options.caught.read_text())["defects"]
        caught = {(each["file"], each["after"]) for each in earlier if each["outcome"] == "caught"}
        results = RESULTS / "defects_again.json"
        defects = [each for each in defects if (each["file"], each["after"]) in caught]
    for defect in defects:
        outcome = _outcome(tree, defect, options.coverage)
        found.append({key: defect[key] for key in ("file", "before", "after")} | outcome)
        results.write_text(json.dumps({"commit": commit.stdout.strip(), "defects": found}, indent=1) + "\n")
        print(f"{len(found):4} {found[-1]['outcome']:9} {found[-1]['file']}: {defect['after'].strip()}", flush=True)
    print(f"{sum(each['outcome'] == 'caught' for each in found)} of {len(found)} caught")
    return 0


def _outcome(tree: Path, defect: dict[str, Any], coverage: Path) -> dict[str, Any]:
    """What becomes of a defect: ``caught`` by a test, ``survived``, or ``gone`` with its line."""
    path = tree / defect["file"]
    text = path.read_text() if path.is_file() else ""
    lines = text.splitlines(keepends=True)
    places = [i for i, line in enumerate(lines) if line.rstrip("\n") == defect["before"]]
    if not places:
        return {"outcome": "gone"}
    place = min(places, key=lambda i: abs(i + 1 - defect.get("line", 0)))
    tests = sorted(_tests(coverage, path, place + 1))
    if not tests:
        return {"outcome": "survived", "tests": 0}
    lines[place] = defect["after"] + "\n"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as names:
        names.write("\n".join(tests))
        names.flush()
        command = [str(tree / ".venv/bin/python"), "-m", "pytest", "-x", "-q", "-n", "2", f"@{names.name}"]
        try:
            path.write_text("".join(lines))
            ended = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=LIMIT, check=False)
        except subprocess.TimeoutExpired:
            return {"outcome": "caught", "tests": len(tests), "by": "it does not end"}
        finally:
            path.write_text(text)
    by = next((line.split()[1] for line in ended.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))), "")
    if ended.returncode and not by:
        raise SystemExit(f"no test ran: {ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    return {"outcome": "caught" if by else "survived", "tests": len(tests), "by": by}


def _tests(coverage: Path, path: Path, line: int) -> Iterator[str]:
    """The tests that run a line."""
    query = """SELECT context.context, line_bits.numbits FROM line_bits JOIN file ON file.id = line_bits.file_id
        JOIN context ON context.id = line_bits.context_id WHERE file.path LIKE ?"""
    with sqlite3.connect(f"file:{coverage}?mode=ro", uri=True) as data:
        for context, bits in data.execute(query, (f"%/{path.parent.name}/{path.name}",)):
            if line // 8 < len(bits) and bits[line // 8] >> (line % 8) & 1 and context:
                yield context.rpartition("|")[0]


if __name__ == "__main__":
    sys.exit(main())
