"""Part: the whole loop, photographs to embeddings of all variants in a store, against the backbone alone."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu_check import goals, networks
from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.rows import MEASURED, Job, Row, skipped
from benchmarks.harness import Timing
from substyle.engine import observability
from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.export import Preprocessed
from substyle.engine.backbones.families import timm
from substyle.engine.backbones.runtimes.openvino import ChunkedBatch
from substyle.engine.backbones.spec import Runtime
from substyle.engine.config import EmbedConfig, Settings
from substyle.engine.devices import ON_GPU, Precision, missing
from substyle.engine.embedding.loop import EmbedSummary
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.run import embed_compiled
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import load_table
from substyle.pipelines.sources import FolderSource
from substyle.pipelines.storage import LocalPlace
from substyle.pipelines.transforms.registry import suite

PART = "end_to_end"
PRECISION: Precision = "bf16"
NEEDED = 60.0  # seconds for compilation and one filling
_SHARDS, _SHARD = 5, 1024  # in one filling, and their photographs
_PICTURES = 64  # that differ; the others are these under other names
_SIDES = (500, 375)  # px, as most of ImageNet


def run(bench: Bench) -> Iterator[Job]:
    """The first network in each runtime that a GPU may have, TensorRT, whose engine takes long to build, last."""
    label, model = bench.sizes.networks[0]
    for runtime in sorted(ON_GPU, key="tensorrt".__eq__):
        yield f"{label}, {runtime}", lambda runtime=runtime: _row(bench, label, model, runtime)  # type: ignore[misc]


def _row(bench: Bench, label: str, model: str, runtime: str) -> Iterator[Row]:
    on_gpu = bench.device.type == "cuda"
    names = suite("substance31" if on_gpu else "mini5")
    name = f"{label}, {runtime}, {PRECISION}, {len(names)} variants"
    why = missing(runtime, chosen=False) or ("" if on_gpu or runtime != "tensorrt" else "TensorRT needs a GPU")
    if why:
        yield skipped(PART, name, why)
        return
    bench.require(NEEDED if on_gpu else 0.0)
    sizes = bench.sizes
    backbone = _backbone(bench, label, model, runtime)
    rows = _SHARD if on_gpu else 4
    config = EmbedConfig(batch=sizes.images, device=str(bench.device), runtime=runtime, shard_rows=rows)
    pipeline = PixelPipeline(Settings(0, sizes.canvas, names), config)
    with tempfile.TemporaryDirectory(prefix="substyle-gpu-check-") as place:
        folder = Path(place)
        fill = _filler(folder, pipeline, backbone)
        fill(_written(folder / "few", sizes.images, sizes.canvas))  # graphs are built and kernels compiled
        source = _written(folder / "many", _SHARDS * rows, sizes.canvas)
        taken: list[EmbedSummary] = []
        shards: list[float] = []
        while len(taken) < 3 and (not taken or bench.left() > 2 * taken[0].seconds["total"]):
            with observability.recording() as trace:
                taken.append(fill(source))
            shards += between_commits(trace.spans)
        found = _stored(folder / f"{len(taken)}.zarr")
    expected = {"photographs": _SHARDS * rows, "embeddings": _SHARDS * rows * len(names)}
    yield goals.counted(PART, f"{name}, read from the store", found, expected)
    alone = _alone(bench, backbone.embed, config.batches_in_flight)
    last = taken[-1].seconds
    facts = {"embeddings/s from start to end": _SHARDS * rows * len(names) / last["total"]}
    facts |= {f"seconds of {part}": spent for part, spent in last.items() if part != "ready"}
    mean = sum(shards) / len(shards)
    yield Row(
        PART, name, MEASURED, "from the first commit of a shard to the last", unit="embeddings",
        per_s=rows * len(names) / mean,
        seconds=asdict(Timing.of(shards)),
        ceiling_per_s=alone, ceiling="the backbone alone, fed with a ready batch", facts=facts,
    )  # fmt: skip


def _stored(folder: Path) -> dict[str, int]:
    """How many photographs and finite embeddings a store has."""
    store = EmbeddingStore.open(folder)
    (entry,) = store.backbones()
    table = load_table(store, entry.name)
    return {"photographs": len(table.keys), "embeddings": int(np.isfinite(np.asarray(table.x_TND)).all(2).sum())}


def between_commits(spans: Iterable[observability.Span]) -> list[float]:
    """Seconds from each commit of a shard to the next: neither the start counts nor the end, in which a GPU waits."""
    ends = sorted(span.ended.wall for span in spans if (span.stage, span.name) == ("embed", "write"))
    return [later - earlier for earlier, later in pairwise(ends)]


def _backbone(bench: Bench, label: str, model: str, runtime: str) -> CompiledBackbone:
    """An untrained network, compiled as `embed` has it; no gate: the part ``runtimes`` has looked at what it gives."""
    sizes = bench.sizes
    front = networks.backbone(model, sizes.canvas)
    spec = timm.wrap(f"untrained:{label}", model, front.network, canvas=sizes.canvas, weights="none").spec
    network = _tensorrt(bench, front) if runtime == "tensorrt" else _torch(bench, front)
    told = {"name": runtime, "precision": PRECISION, "float32_layers": 0, "device": bench.device.type}
    return CompiledBackbone(spec, ChunkedBatch(network, sizes.images), told, None, 1e4)


def _torch(bench: Bench, front: Preprocessed) -> Runtime:
    from substyle.engine.backbones.runtimes.torch_compile import TorchCompiled

    sizes = bench.sizes
    return TorchCompiled(front, PRECISION, sizes.images, bench.device, canvas=sizes.canvas, mode=sizes.mode)


def _tensorrt(bench: Bench, front: Preprocessed) -> Runtime:
    from substyle.engine.backbones import export
    from substyle.engine.backbones.runtimes import tensorrt

    sizes = bench.sizes
    graph = export.typed_graph(front, PRECISION, canvas=sizes.canvas, batch=sizes.images).SerializeToString()
    return tensorrt.TensorRTGraph(tensorrt.build(graph, batch=sizes.images, canvas=sizes.canvas), bench.device)


def _filler(
    folder: Path, pipeline: PixelPipeline, backbone: CompiledBackbone
) -> Callable[[FolderSource], EmbedSummary]:
    """Fills a new store at every call."""
    numbers = count()

    def fill(source: FolderSource) -> EmbedSummary:
        plan = EmbedPlan(source, LocalPlace(folder, f"{next(numbers)}.zarr"), pipeline)
        return embed_compiled(plan, [backbone], quiet=True)

    return fill


def _written(folder: Path, photographs: int, canvas: int) -> FolderSource:
    """JPEG files of smooth pictures, larger than the canvas."""
    folder.mkdir()
    side = max(_SIDES) if canvas > 64 else 2 * canvas
    blobs = []
    for picture in networks.canvases(min(_PICTURES, photographs), side).numpy():
        buffer = io.BytesIO()
        Image.fromarray(picture[: side * _SIDES[1] // _SIDES[0]]).save(buffer, "JPEG", quality=90)
        blobs.append(buffer.getvalue())
    for i in range(photographs):
        (folder / f"{i:06d}.jpg").write_bytes(blobs[i % len(blobs)])
    return FolderSource(folder)


def _alone(bench: Bench, embed: object, begun: int, batches: int = 32) -> float:
    """Images a second of the backbone from a batch on the device, as many of them under way as in the loop."""
    assert isinstance(embed, Runtime)
    canvas = networks.canvases(bench.sizes.images, bench.sizes.canvas).to(bench.device)
    began, started = 0.0, []
    for i in range(batches + 2):
        if i == 2:  # the first ones warm up
            while started:
                started.pop(0)()
            began = time.perf_counter()
        started.append(embed.start(canvas))
        if len(started) > begun:
            started.pop(0)()
    while started:
        started.pop(0)()
    if bench.device.type == "cuda":
        torch.cuda.synchronize(bench.device)
    return batches * len(canvas) / (time.perf_counter() - began)
