"""Throughput from photographs to stored embeddings of all 31 variants, decoding included.

The ceiling of a row is the backbone alone: the compiled graphs on ready batches and the same streams. Backbones run in
plain bf16 without the gate, for speed only; a study cannot do this. Every run creates a store and writes its last
shard, so short runs look slower than long ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import torch

from benchmarks import networks, photographs
from benchmarks.harness import CEILING, OURS, ROOT, Row, interleave
from benchmarks.networks import BATCH, LITE0, RESNET50, SHOWN, VIT_B16
from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.runtimes.openvino import FixedBatch
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.run import embed_compiled
from substyle.pipelines.sources import FolderSource
from substyle.pipelines.storage import LocalPlace

NAME = "end_to_end"
QUESTION = "how fast do photographs become embeddings of all variants in a store, decode included?"
_numbers = count()  # for the names of stores


def run(quick: bool) -> list[Row]:
    """Measure one backbone, two in one pass, and a plain eager script on the same photographs."""
    lite0 = networks.ungated(LITE0, "bf16")
    networks.pipeline().maker(networks.pipeline().settings.transformations)  # compiles the style network
    with tempfile.TemporaryDirectory(prefix="substyle-bench-") as place:
        folder = Path(place)
        rows = [_alone(folder, lite0, 64 if quick else 256, 1 if quick else 3)]
        if not quick:
            rows.append(_alone(folder, networks.ungated(VIT_B16, "bf16"), 96, 2))
            rows.append(_two(folder, [lite0, networks.ungated(RESNET50, "bf16")], 128, 2))
        rows.append(_against_script(folder, lite0, LITE0, 4 if quick else 32, channels_last=True))
        if not quick:
            rows.append(_against_script(folder, networks.ungated(VIT_B16, "bf16"), VIT_B16, 16))
    return rows


def _filler(folder: Path, backbones: Sequence[CompiledBackbone], images: int) -> Callable[[], float]:
    """Return a function that fills a new store and returns the seconds taken."""
    source = FolderSource(_linked(folder, images))

    def fill() -> float:
        plan = EmbedPlan(source, LocalPlace(folder, f"{next(_numbers)}.zarr"), networks.pipeline())
        began = time.perf_counter()
        embed_compiled(plan, backbones, quiet=True)
        return time.perf_counter() - began

    return fill


def _linked(folder: Path, images: int) -> Path:
    linked = folder / f"photographs-{images}"
    return linked if linked.exists() else photographs.write(linked, images)


def _stream(backbones: Sequence[CompiledBackbone], variants: int) -> Callable[[], float]:
    """Return a function that times the backbones alone, in seconds, extrapolated from a quarter of ``variants``."""
    graphs = [backbone.embed for backbone in backbones if isinstance(backbone.embed, FixedBatch)]
    canvas_BSSC = networks.canvases(BATCH)
    some = max(variants // 4 // BATCH, 1) * BATCH

    def alone() -> float:
        began = time.perf_counter()
        networks.stream(graphs, canvas_BSSC, some)
        return (time.perf_counter() - began) * variants / some

    return alone


def _alone(folder: Path, backbone: CompiledBackbone, images: int, repeats: int) -> Row:
    variants = images * len(networks.pipeline().settings.transformations)
    contenders = {OURS: _filler(folder, [backbone], images), CEILING: _stream([backbone], variants)}
    _filler(folder, [backbone], BATCH)()
    timings = interleave(contenders, repeats=repeats, warmup=0)
    facts = {"gate": "bypassed, for speed only"}
    return Row(f"31 variants, {SHOWN[backbone.spec.name]} in bf16", "embeddings", variants, timings, facts=facts)


def _two(folder: Path, backbones: Sequence[CompiledBackbone], images: int, repeats: int) -> Row:
    """Compare two backbones in one pass with a ceiling: the backbones in turn, plus decoding and variants once."""
    pipeline, source = networks.pipeline(), FolderSource(_linked(folder, images))
    variants = images * len(pipeline.settings.transformations)
    stream, make = _stream(backbones, variants), pipeline.maker(pipeline.settings.transformations)

    def apart() -> float:
        began = time.perf_counter()
        for start in range(0, images, BATCH):
            records = source.records[start : start + BATCH]
            canvas_BSSC: torch.Tensor = pipeline.decoder([record.read() for record in records]).canvas_BSSC
            for _ in make(canvas_BSSC, [record.key for record in records]):
                pass
        return time.perf_counter() - began + stream()

    _filler(folder, backbones, BATCH)()
    timings = interleave({OURS: _filler(folder, backbones, images), CEILING: apart}, repeats=repeats, warmup=0)
    names = " and ".join(SHOWN[backbone.spec.name] for backbone in backbones)
    facts = {"times_the_sum": timings[OURS].median / timings[CEILING].median, "gate": "bypassed, for speed only"}
    return Row(
        f"{names} in one pass; ceiling: apart, variants made once", "embeddings", 2 * variants, timings, facts=facts
    )


def _against_script(
    folder: Path, backbone: CompiledBackbone, name: str, images: int, *, channels_last: bool = False
) -> Row:
    """Compare with the plain script, which runs in its own process and reports its time without startup."""
    listed = folder / f"{images}.txt"
    listed.write_text("\n".join(str(path) for path in sorted(_linked(folder, images).iterdir())))
    model = name.rpartition(":")[2]

    def script(*more: str) -> float:
        command = [sys.executable, "-m", "benchmarks.peers.plain_script", str(listed), str(folder / "plain.npy"), *more]
        done = subprocess.run([*command, "--model", model], cwd=ROOT, check=True, capture_output=True, text=True)
        return float(json.loads(done.stdout.splitlines()[-1])["seconds"])

    backbone.embed(networks.canvases(BATCH))  # warm up: the script's time does not include loading its network
    contenders = {OURS: _filler(folder, [backbone], images)}
    contenders["a plain eager script"] = script
    if channels_last:
        contenders["a plain eager script, channels_last"] = partial(script, "--channels-last")
    timings = interleave(contenders, repeats=1, warmup=0)
    variants = images * len(networks.pipeline().settings.transformations)
    facts = {"gate": "bypassed, for speed only"}
    title = f"31 variants, {SHOWN[name]}, against a plain eager script"
    return Row(title, "embeddings", variants, timings, facts=facts)
