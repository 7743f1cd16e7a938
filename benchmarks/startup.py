"""How long until the command line answers, and until a second run embeds?"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import photographs
from benchmarks.harness import CEILING, OURS, Row, interleave, main

NAME = "startup"
QUESTION = "how long until the command line answers, and until a second run embeds?"
PHOTOGRAPHS = 32
BACKBONE = "package:efficientnet_lite0"


def run(quick: bool) -> list[Row]:
    """Help, doctor, a finished run asked for again, and a second run; the ceiling is Python's own start."""
    repeats = 3 if quick else 9
    rows = [
        _row("substyle --help", ["--help"], repeats),
        _row("substyle doctor", ["doctor"], repeats),
    ]
    with tempfile.TemporaryDirectory(prefix="substyle-bench-") as place:
        images = Path(place) / "photographs"
        images.mkdir()
        for i, record in enumerate(photographs.records(PHOTOGRAPHS)):
            (images / f"{i:02d}{Path(record.key).suffix}").write_bytes(record.read())
        store = Path(place) / "s.zarr"
        second = ["embed", str(images), "--store", str(store), "--backbone", BACKBONE, "--quiet", "--json"]
        _call(second)  # compiles, gates and fills the cache, unless an earlier run has
        rows.append(_row("substyle embed, everything there already", second, repeats))
        rows.append(_second(second, store, sorted(images.iterdir()), 3 if quick else 7))
    return rows


def _second(arguments: list[str], store: Path, files: list[Path], repeats: int) -> Row:
    """A new store of the same photographs: seconds from the start of the process to the loop's first photograph."""
    whole: list[float] = []

    def ours() -> float:
        shutil.rmtree(store)
        began = time.perf_counter()
        answer = json.loads(_call(arguments))
        whole.append(time.perf_counter() - began)
        return float(answer["seconds"]["ready"])

    def eager() -> None:
        names = [str(path) for path in files]
        subprocess.run([sys.executable, "-m", "benchmarks.peers.startup_timm", *names], check=True)

    torch = [sys.executable, "-c", "import torch"]
    contenders = {
        OURS: ours,
        "timm, eager, to the end of a first batch of 32": eager,
        "import torch": lambda: subprocess.run(torch, check=True),
    }
    timings = interleave(contenders, repeats=repeats)
    facts = {"seconds": timings[OURS].median, "whole run of 32 photographs, seconds": sorted(whole)[len(whole) // 2]}
    return Row("substyle embed, a second run: ready to embed in all 31 variants", "starts", 1, timings, facts=facts)


def _row(name: str, arguments: list[str], repeats: int) -> Row:
    bare = [sys.executable, "-c", "pass"]
    contenders = {OURS: lambda: _call(arguments), CEILING: lambda: subprocess.run(bare, check=True)}
    timings = interleave(contenders, repeats=repeats)
    return Row(name, "calls", 1, timings, facts={"seconds": timings[OURS].median})


def _call(arguments: list[str]) -> str:
    command = [sys.executable, "-m", "substyle.engine.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


if __name__ == "__main__":
    main(sys.modules[__name__])
