"""How long until the command line answers, until embeddings of a backbone are stored, and from a clone to a report?

A clone of HEAD is installed with empty caches, from where pip is configured to look for packages.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks import photographs
from benchmarks.harness import CEILING, OURS, ROOT, Row, Timing, interleave
from substyle.engine.backbones import packages
from substyle.engine.stages.stamp import NOTE
from substyle.engine.store.layout import slug
from substyle.engine.store.store import EmbeddingStore
from substyle.pipelines import packaged_photographs

NAME = "startup"
QUESTION = "how long until the command line answers, until embeddings are stored, and from a clone to a report?"
PHOTOGRAPHS = 32
BACKBONE = "package:efficientnet_lite0"
LARGE = "package:clip_vit_b16"
_LOOK = 0.02  # seconds between two looks at a store


def run(quick: bool) -> list[Row]:
    """Help, info, a finished run repeated, and first shards by how much of the preparation is cached."""
    repeats = 3 if quick else 9
    rows = [_row(f"substyle {what}", [what], repeats) for what in ("--help", "info")]
    with tempfile.TemporaryDirectory(prefix="substyle-bench-") as place:
        folder = Path(place)
        images, store = photographs.write(folder / "photographs", PHOTOGRAPHS), folder / "s.zarr"
        second = ["embed", str(images), "--store", str(store), "--backbone", BACKBONE, "--quiet", "--json"]
        _call(second)  # compiles, gates and fills the cache, unless an earlier run has
        rows.append(_row("substyle embed, everything there already", second, repeats))
        rows.append(_second(second, store, sorted(images.iterdir()), 3 if quick else 7))
        rows += _first("EfficientNet-Lite0", BACKBONE, images, folder, 1 if quick else 3)
        if not quick and packages.SHIPPED[LARGE.partition(":")[2]].folder() is not None:
            rows += _first("CLIP ViT-B/16", LARGE, images, folder, 1)
        rows.append(_demo("smallest" if quick else "demo", folder, 1 if quick else 3))
        if not quick:
            rows += _clone(folder)
    return rows


def _demo(study: str, folder: Path, repeats: int) -> Row:
    """From the command to the report, with an empty cache, and the seconds of each stage."""
    stages: list[dict[str, float]] = []
    place = {**os.environ, "SUBSTYLE_CACHE": str(folder / "cache")}

    def ours() -> None:
        for made in ("cache", "runs"):
            shutil.rmtree(folder / made, ignore_errors=True)
        began = time.perf_counter()
        _call(["run", study, "--packaged", "--out", "runs/demo", "--quiet"], cwd=folder, env=place)
        own = _stages(folder / "runs" / "demo")
        stages.append({**own, "all else": time.perf_counter() - began - sum(own.values())})

    timings = interleave({OURS: ours}, repeats=repeats, warmup=0)
    facts = {f"{stage}, seconds": Timing.of([run[stage] for run in stages]).median for stage in stages[0]}
    facts["seconds"] = timings[OURS].median
    return Row(f"substyle run {study} --packaged, empty cache", "runs", 1, timings, facts=facts)


def _stages(out: Path) -> dict[str, float]:
    """Seconds of embedding and of each stage of a finished study."""
    spent = {"embed": float(json.loads((out / "results.json").read_text())["throughput"]["embed_seconds"])}
    for note in sorted(out.rglob(NOTE)):
        stage = note.relative_to(out).parts[0]
        spent[stage] = spent.get(stage, 0.0) + float(json.loads(note.read_text())["seconds"])
    return spent


def _clone(folder: Path) -> list[Row]:
    """Installation with empty caches, also by pip alone, and from a clone to the report of the demo."""
    extra = "gpu" if torch.cuda.is_available() else "cpu"
    caches = ("XDG_CACHE_HOME", "UV_CACHE_DIR", "PIP_CACHE_DIR", "SUBSTYLE_CACHE")
    place = {**os.environ, **{name: str(folder / f"of-{name}") for name in caches}}
    pip = "INSTALL=.pip/bin/python -m pip install --quiet --disable-pip-version-check"
    steps = {
        "clone": ["git", "clone", "--quiet", str(ROOT), "clone"],
        "install": ["make", "-C", "clone", f".venv/.installed-{extra}"],
        "demo": ["make", "-C", "clone", "demo"],
        "pip": ["make", "-C", "clone", "VENV=.pip", pip, f".pip/.installed-{extra}"],
    }
    spent: dict[str, float] = {}
    for step, command in steps.items():
        own = [*command, f"PYTHON={sys.executable}", f"EXTRA={extra}"] if command[0] == "make" else command
        began = time.perf_counter()
        subprocess.run(own, cwd=folder, env=place, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        spent[step] = time.perf_counter() - began
    own, stages = {"clone": spent["clone"], "install": spent["install"]}, _stages(folder / "clone" / "runs" / "demo")
    whole = own["clone"] + own["install"] + spent["demo"]
    own |= {**stages, "all else": spent["demo"] - sum(stages.values())}
    installed = {OURS: Timing.of([own["install"]]), "pip alone": Timing.of([spent["pip"]])}
    facts = {f"{stage}, seconds": seconds for stage, seconds in own.items()}
    name, cloned = "installation of what the demo needs, empty caches", {OURS: Timing.of([whole])}
    return [
        Row(name, "installations", 1, installed, facts={"seconds": own["install"]}),
        Row("git clone and make demo, empty caches", "runs", 1, cloned, facts={"seconds": whole, **facts}),
    ]


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


def _first(shown: str, name: str, images: Path, folder: Path, repeats: int) -> list[Row]:
    """To the first shard with an empty cache, and to the first batch of photographs that are new to the gate."""
    number = iter(range(1000))
    cache = folder / slug(name)
    ready: list[float] = []

    def run(own: Path) -> tuple[float, float]:
        return _first_shard(name, own, folder / f"{slug(name)}-{next(number)}.zarr", cache)

    def empty() -> float:
        shutil.rmtree(cache, ignore_errors=True)
        first, loop = run(images)
        ready.append(loop)
        return first

    def unknown() -> float:
        own = folder / f"{slug(name)}-{next(number)}"
        own.mkdir()
        for i, canvas in enumerate(packaged_photographs.canvases(PHOTOGRAPHS, 256)[0]):
            Image.fromarray(canvas).save(own / f"{i:02d}.jpg", quality=60 + next(number) % 39)
        return run(own)[1]

    whole = interleave({OURS: empty}, repeats=repeats, warmup=0)
    facts = {"seconds": whole[OURS].median, "seconds to the first batch": Timing.of(ready).median}
    rows = [Row(f"{shown}, empty cache: to the first stored shard", "starts", 1, whole, facts=facts)]
    new = interleave({OURS: unknown, "known photographs": lambda: run(images)[1]}, repeats=repeats, warmup=0)
    facts = {"seconds more": new[OURS].median - new["known photographs"].median}
    return [*rows, Row(f"{shown}, photographs new to it: ready to embed", "starts", 1, new, facts=facts)]


def _first_shard(name: str, images: Path, store: Path, cache: Path) -> tuple[float, float]:
    """Seconds to the first stored shard, after which the run is stopped, and to the first batch."""
    began, own = time.perf_counter(), slug(name)
    command = [sys.executable, "-m", "substyle.engine.cli", "embed", str(images), "--store", str(store)]
    errors = store.with_suffix(".log")
    with errors.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--backbone", name, "--quiet"],
            stdout=subprocess.DEVNULL, stderr=log, env={**os.environ, "SUBSTYLE_CACHE": str(cache)},
        )  # fmt: skip
    ready = None
    while process.poll() is None:
        if ready is None and (store / "substyle.json").exists():  # created once backbones are prepared
            ready = time.perf_counter() - began
        if ready is not None and len(EmbeddingStore.open(store).finished().of([own])):
            break
        time.sleep(_LOOK)
    first = time.perf_counter() - began
    process.terminate()
    if process.wait() not in (0, 143, -signal.SIGTERM) or ready is None:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{errors.read_text()[-2000:]}")
    return first, ready


def _row(name: str, arguments: list[str], repeats: int) -> Row:
    bare = [sys.executable, "-c", "pass"]
    contenders = {OURS: lambda: _call(arguments), CEILING: lambda: subprocess.run(bare, check=True)}
    timings = interleave(contenders, repeats=repeats)
    return Row(name, "calls", 1, timings, facts={"seconds": timings[OURS].median})


def _call(arguments: list[str], **place: Any) -> str:  # noqa: ANN401 - options of `subprocess.run`
    command = [sys.executable, "-m", "substyle.engine.cli", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, **place)
    return str(done.stdout)
