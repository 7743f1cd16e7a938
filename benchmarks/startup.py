"""How long until the command line answers?"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import photographs
from benchmarks.harness import CEILING, OURS, Row, interleave, main

NAME = "startup"
QUESTION = "how long until the command line answers?"


def run(quick: bool) -> list[Row]:
    """Help, doctor, and a finished run asked for again; the ceiling is Python's own start."""
    repeats = 3 if quick else 9
    rows = [
        _row("substyle --help", ["--help"], repeats),
        _row("substyle doctor", ["doctor"], repeats),
    ]
    with tempfile.TemporaryDirectory(prefix="substyle-bench-") as place:
        store = Path(place) / "s.zarr"
        again = ["embed", str(photographs.folder()), "--store", str(store), "--limit", "32", "--quiet",
                 "--backbone", "package:efficientnet_lite0", "--suite", "identity,grayscale"]  # fmt: skip
        _call(again)
        rows.append(_row("substyle embed, everything there already", again, repeats))
        more = [*again[:4], "--quiet", "--backbone", "package:efficientnet_lite0", "--suite", "identity,grayscale"]
        rows.append(_row("substyle embed, compiled backbone in the cache, one shard to do", more, 1, fresh=store))
    return rows


def _row(name: str, arguments: list[str], repeats: int, *, fresh: Path | None = None) -> Row:
    def ours() -> None:
        if fresh is not None and fresh.exists():
            shutil.rmtree(fresh)
        _call(arguments)

    bare = [sys.executable, "-c", "pass"]
    timings = interleave({OURS: ours, CEILING: lambda: subprocess.run(bare, check=True)}, repeats=repeats)
    return Row(name, "calls", 1, timings, facts={"seconds": timings[OURS].median})


def _call(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "substyle.engine.cli", *arguments]
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main(sys.modules[__name__])
