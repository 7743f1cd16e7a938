"""The loop with a runtime that works later, as a GPU does, and pixels whose memory is taken back when they are let go.

What it reads is read when its result is asked for and no earlier; memory of a variant that nobody holds is overwritten
at once. The embeddings and the journal must be those of the CPU.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.conftest import jpeg, photograph

from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.backbones.families import controls
from substyle.engine.backbones.runtimes.base import TorchModule
from substyle.engine.backbones.spec import Backbone
from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.devices import Target
from substyle.engine.embedding import prepare
from substyle.engine.embedding.prepare import PixelPipeline
from substyle.pipelines.transforms.registry import suite

SIDE, POISON = 32, 0xA5
pytestmark = pytest.mark.usefixtures("one_thread", "settled")


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
