"""The loop with a runtime that works later, as a GPU does, and pixels whose memory is taken back when they are let go.

What it reads is read when its result is asked for and no earlier; memory of a variant that nobody holds is overwritten
at once. The embeddings and the journal must be those of the CPU.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.conftest import jpeg, photograph, shards_of

from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.families import controls
from substyle.engine.backbones.runtimes.base import TorchModule
from substyle.engine.backbones.spec import Backbone
from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.devices import Target
from substyle.engine.embedding import prepare
from substyle.engine.embedding.loop import EmbedSummary
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.engine.embedding.run import embed_compiled
from substyle.engine.store import journal
from substyle.pipelines.sources import FolderSource
from substyle.pipelines.storage import place
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.variants import Variant, VariantMaker

SIDE, POISON = 32, 0xA5
pytestmark = pytest.mark.usefixtures("one_thread", "settled")


class Lender:
    """A variant maker that lends memory, as DALI does: what it lent is poisoned when its tensor is let go."""

    def __init__(self, make: VariantMaker) -> None:
        self.make = make
        self.buffers: list[NDArray[np.uint8]] = []  # never freed: only overwritten
        self.out = self.most = 0

    def __call__(self, *arguments: Any) -> Iterator[Variant]:  # noqa: ANN401
        for variant in self.make(*arguments):
            buffer = variant.pixels_BSSC.numpy().copy()
            self.buffers.append(buffer)
            lent = torch.from_numpy(buffer)
            weakref.finalize(lent, self._taken_back, buffer)
            self.out += 1
            self.most = max(self.most, self.out)
            yield replace(variant, pixels_BSSC=lent)

    def _taken_back(self, buffer: NDArray[np.uint8]) -> None:
        buffer.fill(POISON)
        self.out -= 1


@dataclass
class Later:
    """A batch that has been started: it holds no pixels, it only knows where they lie."""

    runtime: Device
    number: int
    place: int
    shape: tuple[int, ...]

    def __call__(self) -> NDArray[np.float32]:
        assert self.number == self.runtime.ended, "results are asked for in order, and once"
        self.runtime.ended += 1
        bytes_ = (ctypes.c_uint8 * int(np.prod(self.shape))).from_address(self.place)
        return self.runtime.module(np.frombuffer(bytes_, np.uint8).reshape(self.shape).copy())


class Device:
    """A runtime that computes nothing before it is asked for the result."""

    def __init__(self, backbone: Backbone) -> None:
        assert backbone.module is not None
        self.module = TorchModule(backbone.module)
        self.begun = self.ended = self.most = 0

    def __call__(self, canvas_BSSC: torch.Tensor) -> NDArray[np.float32]:
        return self.start(canvas_BSSC)()

    def start(self, canvas_BSSC: torch.Tensor) -> Later:
        assert isinstance(canvas_BSSC, torch.Tensor), "pixels are tensors all the way"
        assert canvas_BSSC.is_contiguous()
        started = Later(self, self.begun, canvas_BSSC.data_ptr(), tuple(canvas_BSSC.shape))
        self.begun += 1
        self.most = max(self.most, self.begun - self.ended)
        return started


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i in range(21):
        picture = photograph(i) if i % 5 else photograph(i).convert("L")  # grey ones have indistinct variants
        (folder / f"{i:02d}.jpg").write_bytes(jpeg(picture))
    (folder / "05.jpg").write_bytes(b"no image")
    return folder


def run(images: Path, store: Path, embeds: Sequence[tuple[Backbone, Any]], *, lent: bool = False) -> EmbedSummary:
    """Fill a store, of pixels in memory that is lent or that is the loop's own."""
    settings = Settings(0, SIDE, suite("mini5"))
    pipeline = PixelPipeline(settings, EmbedConfig(batch=4, threads=1, shard_rows=8, device="cpu"))
    lender = Lender(pipeline.maker(settings.transformations))
    if lent:
        pipeline.maker = lambda names: lender  # type: ignore[assignment, method-assign, return-value]
    runtime = {"name": "torch", "precision": "fp32", "float32_layers": 0, "version": "", "device": "cpu"}
    compiled = [CompiledBackbone(b.spec, embed, runtime, None, 1e4) for b, embed in embeds]
    summary = embed_compiled(EmbedPlan(FolderSource(images), place(store), pipeline), compiled, quiet=True)
    if lent:
        assert lender.out == 0, "all of it has been given back"
        assert lender.most > 2, "more than one variant is under way"
    return summary


def content(path: Path) -> tuple[dict[str, str], list[Any]]:
    """Digests of shards by name, and what the journal says of each image."""
    records = sorted(journal.read(place(path)), key=lambda record: (record.shard, record.backbone))
    said = [(r.shard, r.backbone, r.checksums, r.images) for r in records]
    return shards_of(path), said


def both() -> list[Backbone]:
    return [controls.load(f"control:{kind}", kind, canvas=SIDE) for kind in ("pixels", "statistics")]


def test_what_a_gpu_makes_of_a_jpeg_file_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a hardware engine it makes other pixels, which must not share a store."""
    pipeline = PixelPipeline(Settings(0, SIDE, suite("mini5")), EmbedConfig(batch=4, threads=1, device="cpu"))
    spec = both()[0].spec
    monkeypatch.setattr(
        prepare, "compile_source", lambda *args, **named: CompiledBackbone(spec, Any, {"name": "torch"}, None, 1.0)
    )

    def runtime() -> dict[str, Any]:
        own = prepare.OwnSamples(pipeline, {}, [], 0)
        (made,) = prepare.prepare_backbones([BackboneChoice("control:pixels")], own, quiet=True)
        return made.runtime

    assert runtime() == {"name": "torch"}  # all CPUs decode alike
    monkeypatch.setattr(Target, "on_gpu", True)
    first = runtime()["decoded_jpeg"]
    assert runtime()["decoded_jpeg"] == first
    decode = pipeline.decoder
    other = decode([jpeg(photograph(0))]).canvas_BSSC.clone()
    monkeypatch.setitem(pipeline.__dict__, "decoder", lambda blobs: SimpleNamespace(canvas_BSSC=other))
    assert runtime()["decoded_jpeg"] != first
