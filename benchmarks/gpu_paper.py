"""Run what a GPU would run without one, on tensors without values: ``python -m benchmarks.gpu_paper``.

``make gpu-paper`` calls it with a CUDA build of torch, whose `FakeTensorMode` needs no driver. Of each piece it tells:

- whether the host waits for the device: an operation whose result the host needs (``item``, ``nonzero``, ``bincount``,
  masks as indices), a copy that blocks, an event or a stream that is waited for;
- whether an operation or a Triton kernel mixes devices, and whether a kernel takes the arguments it is given;
- how many launches and bytes it takes.

Values, kernels, hooks of autograd, and waits inside an operation (such as those of ``torch.linalg``) are not checked.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks import harness
from benchmarks.fake_gpu import CUDA, WAITING, Counter, MixedDevicesError, fake_gpu
from benchmarks.gpu_check import neighbours, probe_fits, probe_replay, probe_ways
from benchmarks.gpu_check.bench import Bench, Sizes
from substyle.engine import cuda
from substyle.engine.analysis import neighbors
from substyle.engine.backbones.export import Preprocessed
from substyle.engine.backbones.families import controls
from substyle.engine.backbones.runtimes.base import TorchOnDevice
from substyle.engine.backbones.runtimes.torch_compile import TorchCompiled
from substyle.engine.embedding.blobs import Blob
from substyle.engine.embedding.loop import EmbedSummary, Loop
from substyle.engine.embedding.plan import ShardTask
from substyle.engine.embedding.scheduler import Scheduler, ShardInProgress
from substyle.engine.estimate import networks as estimated
from substyle.engine.extensions.attentive.config import AttentiveConfig
from substyle.engine.extensions.attentive.heads import token_grid
from substyle.engine.probes.batches import Batches, BatchPart, Features
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.dataset import Resident, Standardizer
from substyle.engine.probes.linear import variant_weights
from substyle.engine.probes.objective import Objective, StoredObjective
from substyle.engine.probes.preconditioner import CovarianceBasis, CovarianceMetric
from substyle.engine.probes.tasks import Task, stream_of, transformation_task
from substyle.engine.probes.training_rows import TrainingRows
from substyle.engine.store.identity import EMBED
from substyle.engine.style_transfer import networks
from substyle.kernels import dispatch
from substyle.kernels.difference import distinct
from substyle.pipelines import variants
from substyle.pipelines.decode import Decoded
from substyle.pipelines.transforms import base, style
from substyle.pipelines.transforms.registry import load_all, suite

NAME = "gpu_paper"
QUESTION = "does the path of a GPU wait for it or mix devices, and what does it launch and move?"
OK, WAITS, FAILED, NOT_RUN = "ok", "waits", "failed", "not run"
KNOWN = {"each_picture": "drawn on the host"}  # functions that are known to wait


@dataclass(frozen=True)
class Case:
    """A piece of the product.

    Attributes:
        ready: prepares it on the fake device, where the host may wait; returns the work, which may not.
        fused: whether to count as torch.compile fuses; products: matrix products alone.
        missing: why it cannot run without a driver.
    """

    name: str
    ready: Callable[[], Callable[[], object]] | None = None
    fused: bool = False
    products: bool = False
    missing: str = ""


@dataclass(frozen=True)
class Row:
    """What a case came to."""

    name: str
    status: str
    text: str = ""
    launches: int | None = None
    bytes: float | None = None


def row(case: Case) -> Row:
    if case.ready is None:
        return Row(case.name, NOT_RUN, case.missing)
    try:
        with fake_gpu() as watch, torch.no_grad():
            watch.strict = False
            work = case.ready()
            watch.strict = True
            with (
                Counter(CUDA, fused=case.fused) as counter,
                dispatch.watched(counter.triton),
                patch.object(dispatch, "compiled", counter.compiled),
            ):
                work()
    except Exception as error:  # noqa: BLE001 - whatever one piece fails of, the others are checked
        return Row(case.name, *verdict(error))
    found = [launch for launch in counter.launches if launch.product or not case.products]
    return Row(case.name, OK, "", len(found), sum(launch.moved for launch in found))


def verdict(error: Exception) -> tuple[str, str]:
    words = (str(error).strip() or "no reason given").splitlines()[0]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/substyle/" in f.filename]
    frames = [f for f in frames if not f.filename.endswith("/fake_gpu.py")]  # it calls what it counts
    known = next((KNOWN[f.name] for f in frames if f.name in KNOWN), None)
    where = f", at {frames[-1].filename.rpartition('/substyle/')[2]}:{frames[-1].lineno}" if frames else ""
    waits = isinstance(error, WAITING) or ".numpy() is not supported" in words
    if waits and known:
        return WAITS, known
    if waits:
        return FAILED, f"the host waits: {words}{where}"
    if isinstance(error, MixedDevicesError):
        return FAILED, f"mixed devices: {words}{where}"
    return FAILED, f"{type(error).__name__}: {words}{where}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write the rows; return 1 where one failed, 2 for bad usage, else 0."""
    parser = argparse.ArgumentParser(prog=NAME, description=QUESTION)
    parser.add_argument("--only", metavar="NAME", default="", help="cases whose name begins with NAME")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file for the JSON result")
    options = parser.parse_args(arguments)
    if torch.version.cuda is None:
        parser.error("this torch is built without CUDA; `make gpu-paper` installs one that is")
    rows = []
    for case in cases():
        if case.name.startswith(options.only):
            rows.append(row(case))
            print(shown(rows[-1]), flush=True)
    if not rows:
        parser.error(f"no case begins with {options.only!r}")
    print(", ".join(f"{sum(r.status == status for r in rows)} {status}" for status in (OK, WAITS, FAILED, NOT_RUN)))
    if options.out:
        data = harness.document(NAME, QUESTION, cuda=torch.version.cuda, rows=[asdict(r) for r in rows])
        harness.write(options.out, data)
    return int(any(r.status == FAILED for r in rows))


def shown(r: Row) -> str:
    counted = "" if r.launches is None else f": {r.launches} launches, {r.bytes:.4g} bytes"
    return f"{r.name}: {r.status}{f' ({r.text})' if r.text else ''}{counted}"


# --- the cases ----------------------------------------------------------------------------------------------------

SIDE = 224
BATCH = 32  # drawing the parameters of 256 pictures takes minutes
BACKBONES = (
    "timm:vit_base_patch16_224", "timm:resnet50", "timm:convnext_tiny", "package:mobilenet_v2", "package:clip_vit_b16",
    "open_clip:ViT-B-32/openai",
)  # fmt: skip


def cases() -> Iterator[Case]:
    yield from _variants()
    yield from _styles()
    for name in BACKBONES:
        yield Case(name, partial(_backbone, name), products=True)
    for kind in ("pixels", "statistics"):
        yield Case(f"control:{kind}", partial(_control, kind))
    yield Case("embedding: a batch of the loop", _loop)
    yield from _probes()
    yield Case("analysis: neighbours by torch", _neighbours)
    yield Case("analysis: neighbours by FAISS, casts and merging", _merging)
    yield Case("analysis: neighbours and clusters by FAISS", missing="FAISS's kernels need a driver")
    yield Case("analysis: sensitivity", missing="numpy on the host, also where there is a GPU")


def _canvas(count: int = BATCH) -> torch.Tensor:
    return torch.zeros(count, SIDE, SIDE, 3, dtype=torch.uint8, device=CUDA)


_ELSEWHERE = {
    "dali": "DALI's operators need a driver",
    "library": "computed by processes on the host",
    base.PHOTOGRAPHS: "shown by photographs",
}


def _variants() -> Iterator[Case]:
    load_all()

    def here(name: str) -> bool:
        own = base.get(name)
        return own.made_by in ("identity", "kernel", "dali") and not own.by_dali(gpu=True)

    for name, own in base.REGISTRY.items():
        if here(name):
            yield Case(f"variants: {name}", partial(_maker, [name]))
        elif own.made_by != "network":
            yield Case(f"variants: {name}", missing=_ELSEWHERE["dali" if own.by_dali(gpu=True) else own.made_by])
    names = [name for name in suite("substance31") if here(name)]
    title = f"variants: {len(names)} of substance31 at once"
    yield Case(title, partial(_maker, names))


def _variant_maker(names: Sequence[str]) -> variants.VariantMaker:
    with patch.object(variants, "as_device", lambda name: CUDA):
        return variants.VariantMaker(names, side=SIDE, seed=0, batch=BATCH, threads=1, device="cuda")


def _maker(names: Sequence[str]) -> Callable[[], object]:
    maker = _variant_maker(names)

    def of(start: int) -> list[variants.Variant]:
        return list(maker(canvas, [str(i) for i in range(start, start + BATCH)]))

    canvas = _canvas()
    of(BATCH)  # tables of parameters are copied to the device once
    return lambda: of(0)


def _styles() -> Iterator[Case]:
    of_network = base.by_network(base.REGISTRY)
    for network, names in of_network.items():
        yield Case(f"styles: {network}", partial(_style, network, names), fused=True)


def _style(network: str, names: Sequence[str]) -> Callable[[], object]:
    generator = (
        networks.multistyle_generator([networks.MULTISTYLE[name] for name in names])
        if network == style.MULTISTYLE
        else networks.arbitrary_generator(np.zeros((len(names), 100), np.float32))
    )
    made = networks.DeviceStyles(generator, names, side=SIDE, precision="bf16", device=CUDA, mode="off")
    canvas = _canvas(networks.PIECE)
    return lambda: [distinct(canvas, picture) for picture in made(canvas).values()]


def _backbone(name: str) -> Callable[[], object]:
    network, side = estimated.network_of(name)
    # fused into one operation, attention has no products that are counted
    torch.backends.mha.set_fastpath_enabled(False)
    module = Preprocessed(network.eval(), canvas=SIDE, side=side, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    runtime = TorchCompiled(module, "bf16", BATCH, CUDA, canvas=SIDE, mode="off")
    canvas = _canvas()
    return lambda: runtime.start(canvas)


def _of_control(kind: str) -> TorchOnDevice:
    module = controls.load(f"control:{kind}", kind, canvas=SIDE).module
    assert module is not None
    return TorchOnDevice(module, CUDA)


def _control(kind: str) -> Callable[[], object]:
    runtime, canvas = _of_control(kind), _canvas()
    return lambda: runtime.start(canvas)


def _loop() -> Callable[[], object]:
    """A batch of the calling thread, then what the embedding and the writing thread do with it, on this thread."""
    names, keys, none = ["identity", "jpeg", "elastic"], [str(i) for i in range(BATCH)], np.zeros(BATCH, np.bool_)
    maker = _variant_maker(names)
    pipeline: Any = SimpleNamespace(
        target=SimpleNamespace(torch_device=CUDA),
        settings=SimpleNamespace(transformations=names),
        maker=lambda wanted: maker,
    )
    backbone: Any = SimpleNamespace(
        names=["pixels"], columns=[slice(None)], embed=_of_control("pixels"), spec=SimpleNamespace(name="pixels")
    )
    store: Any = SimpleNamespace(path=Path())
    loop = Loop(store, pipeline, [], [backbone], "", EMBED, 1)
    loop.summary, loop._readers = EmbedSummary(), SimpleNamespace(map=map)
    decoded = Decoded(_canvas(), none, [None] * BATCH, np.zeros((BATCH, 2), np.int32))  # no values come to the host

    def work() -> None:
        task = ShardTask(0, 0, [names], np.arange(BATCH), keys, none, [None] * BATCH, {})
        shard = ShardInProgress(task)
        scheduler = Scheduler([backbone], lambda *_: None, lambda _: None, waiting=9, most_in_flight=2, device=CUDA)

        def copied(host: torch.Tensor, done: torch.cuda.Event, _: object) -> object:
            if not scheduler._last:  # the two other threads wait for copies
                done.synchronize()
            return host.numpy()

        with patch.object(cuda, "_copied", copied):
            loop._batch(shard, range(BATCH), [Blob(b"")] * BATCH, decoded, scheduler)
            scheduler._last = True
            cuda.own_stream(CUDA)(scheduler._embed)()
            assert len(shard.notes[0]()) == BATCH
        assert shard.missing == 1

    work()
    return work


ROWS, WIDTH, IMAGES, CLASSES = 1024, 768, 4096, 31


def _probes() -> Iterator[Case]:
    yield Case("probes: a pass of linear heads", partial(_linear, torch.float32))
    yield Case("probes: a pass of linear heads, rows as stored", partial(_linear, torch.float16))
    yield Case("probes: steps of MLPs", _mlps)
    for kind in (torch.float16, torch.int8):
        name = str(kind).removeprefix("torch.")
        yield Case(f"probes: steps of linear heads, rows drawn from {name}", partial(_drawn, kind))
    for head in ("attentive", "efficient"):
        yield Case(f"probes: steps of {head} heads", partial(_tokens, head))


def _task(width: int, dtype: torch.dtype) -> tuple[Task, Features]:
    table = probe_fits.made(IMAGES, width)
    task = transformation_task(table, 0)
    assert task is not None
    x_RD = torch.zeros(table.x_TND.shape[0] * IMAGES, width, dtype=torch.float16, device=CUDA)
    standard = Standardizer(np.zeros(width, np.float32), np.ones(width, np.float32))
    return task, Features(Resident(table, x_RD), standard, CUDA, dtype)


def _linear(dtype: torch.dtype) -> Callable[[], object]:
    stored = dtype == torch.float16
    task, features = _task(WIDTH, torch.float32 if stored else dtype)
    heads = 4
    rows = TrainingRows(features, task, np.tile(variant_weights(task, task.train_T), (heads, 1)))
    basis = CovarianceBasis(torch.zeros(WIDTH, WIDTH, device=CUDA), torch.zeros(WIDTH, device=CUDA))
    metric = CovarianceMetric.of(basis, len(task.labels), np.ones(heads))
    objective = (StoredObjective if stored else Objective)(rows, features, metric)
    u_KP = torch.zeros(heads, len(task.labels) * (WIDTH + 1), device=CUDA)
    alive = torch.arange(heads, device=CUDA)
    return lambda: [objective(u_KP, alive) for _ in range(2)]  # the first pass gathers rows


def _mlps() -> Callable[[], object]:
    problem = probe_ways.problem(ROWS, WIDTH, CLASSES, heads=8, hidden=512)
    rows = torch.zeros(8, ROWS, dtype=torch.int64, device=CUDA)
    x_RD = torch.zeros(IMAGES, WIDTH, dtype=torch.float16, device=CUDA)
    steps = probe_replay.steps_of(problem, problem.heads(CUDA), x_RD, rows, torch.bfloat16)
    steps.take(len(rows))
    return lambda: steps.take(len(rows))


def _drawn(kind: torch.dtype) -> Callable[[], object]:
    work = probe_replay.trained(Bench(CUDA, Sizes(table_rows=IMAGES * CLASSES)), kind, ROWS)
    work()
    return work


def _tokens(head: str) -> Callable[[], object]:
    tokens, width = 49, 64
    task, features = _task(tokens * width, torch.bfloat16)
    part = BatchPart(task, stream_of(task, 0, CUDA), ROWS // 8)
    settings = token_grid(AttentiveConfig(), ProbeConfig(), head, tokens, width)
    bank = settings[0].bank(settings, features, len(task.labels), [0], 0.0)
    batches = Batches(features, [part], 2, 8)

    def learn() -> None:
        bank.learn(batches.block([1.0, 1.0]), [part])

    learn()
    return learn


def _vectors() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(600_000, WIDTH, device=CUDA), torch.zeros(4096, WIDTH, device=CUDA)


def _neighbours() -> Callable[[], object]:
    bank, queries = _vectors()
    return lambda: neighbours.search(bank, queries, 50)


def _merging() -> Callable[[], object]:
    bank, queries = _vectors()

    def block(query_QD: torch.Tensor, bank_BD: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = len(query_QD), k
        return torch.zeros(shape, device=CUDA), torch.zeros(shape, dtype=torch.int64, device=CUDA)

    def work() -> torch.Tensor:
        with patch.object(neighbors, "_block", block):
            return neighbors.search_on_gpu(queries, bank.half(), 50)

    return work


if __name__ == "__main__":
    sys.exit(main())
