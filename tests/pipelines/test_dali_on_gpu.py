"""The DALI graph for a GPU, tested without one: devices are checked at definition, but building it needs a driver.

Streams and memory are tested with a mocked pipeline that records its calls.
"""

from __future__ import annotations

import gc
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import operators
from benchmarks.gpu_check import tolerances
from tests.pipelines.conftest import scene

from substyle.kernels.dispatch import BorrowedMemory
from substyle.pipelines import dali
from substyle.pipelines.dali import Graph
from substyle.pipelines.transforms import base, color
from substyle.pipelines.variants import VariantMaker, load_all

load_all()
GPU = torch.device("cuda", 0)


def test_the_table_of_operators_is_that_of_the_page() -> None:
    text = operators.PAGE.read_text()
    assert operators.page(text) == text


@pytest.mark.parametrize("side", [64, 97])
def test_a_graph_for_a_gpu_has_the_pixels_of_the_cpu(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU's definitions give on the CPU, within the bounds of the table."""
    names = ("hue_shift", "saturate", "low_contrast", "zoom_blur", "jpeg")
    canvas_BSSC = torch.from_numpy(np.stack([scene(side, side, seed) for seed in range(4)]))

    def made() -> dict[str, torch.Tensor]:
        maker = VariantMaker(names, side=side, seed=1, batch=4, threads=1)
        return {variant.name: variant.pixels_BSSC.clone() for variant in maker(canvas_BSSC, list("abcd"))}

    on_cpu, plain = made(), base.Transformation.implementation
    monkeypatch.setattr(VariantMaker, "on_gpu", property(lambda maker: True))
    monkeypatch.setattr(base.Transformation, "implementation", lambda own, gpu: plain(own, gpu=True))
    monkeypatch.setattr(color, "is_on_gpu", lambda canvas: True)
    on_gpu = made()
    for name in names:
        good, text = tolerances.within(on_gpu[name], on_cpu[name], tolerances.VARIANTS[name])
        assert good, f"{name}: {text}"
    assert torch.equal(on_gpu["jpeg"], on_cpu["jpeg"])
    assert torch.equal(on_gpu["low_contrast"], on_cpu["low_contrast"])
    assert not torch.equal(on_gpu["zoom_blur"], on_cpu["zoom_blur"])  # another implementation


class Output:
    """A tensor list; ``poison`` overwrites its memory, as a library may after its release."""

    def __init__(self, said: list[Any], pixels: torch.Tensor) -> None:
        self.said, self.pixels = said, pixels

    def as_tensor(self) -> torch.Tensor:
        self.said.append("tensor")
        return self.pixels

    def poison(self) -> None:
        self.pixels.fill_(0xAB)


class Pipeline:
    def __init__(self, said: list[Any]) -> None:
        self.said = said
        self.made: list[Output] = []

    def feed_input(self, name: str, data: Any, **how: Any) -> None:  # noqa: ANN401
        self.said.append(("feed", name, type(data), how))
        if name == "canvas":
            self.canvas = data

    def run(self, stream: Any) -> tuple[Output, ...]:  # noqa: ANN401
        self.said.append(("run", stream))
        self.made = [Output(self.said, self.canvas + 1)]
        return tuple(self.made)


class Event:
    def record(self, stream: Any) -> None:  # noqa: ANN401
        self.stream = stream

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        pass


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> tuple[Graph, Pipeline, list[Any]]:
    said: list[Any] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"torch's stream on {device}")
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    made = Graph.__new__(Graph)
    pipeline = Pipeline(said)
    inputs = dali.Inputs("jpeg", {"quality": np.zeros(1, np.int32)}, "gpu")
    inputs["quality"] = object()
    made.device, made.pipeline, made.inputs, made._held = GPU, pipeline, {"jpeg": inputs}, BorrowedMemory()
    return made, pipeline, said


def test_nothing_is_dropped_before_it_is_read(stand_in: tuple[Graph, Pipeline, list[Any]]) -> None:
    """The host is ahead of the device: outputs of DALI live until their event completes."""
    made, _, _ = stand_in
    for _ in range(3):
        made(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), {"jpeg": {"quality": np.array([7], np.int32)}})
    gc.collect()
    assert len(made._held) == 3
