"""Decoding for a GPU, tested without one: graph definition, memory, orientation and copies."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.pipelines.test_dali_on_gpu import Event

from substyle.kernels.dispatch import BorrowedMemory
from substyle.pipelines import decode
from substyle.pipelines.dali import DaliDecoder

GPU = torch.device("cuda", 0)


class Pipeline:
    def __init__(self, refuses: bool = False) -> None:
        self.refuses, self.given = refuses, {}
        self.canvas = torch.full((1, 4, 4, 3), 7, dtype=torch.uint8)

    def run(self, *stream: Any, **given: Any) -> tuple[Any, ...]:  # noqa: ANN401
        assert not stream  # the host waits for DALI only
        if self.refuses:
            raise RuntimeError("nvJPEG: not supported")
        arrays = (self.canvas, np.array([[9, 8, 3]]), np.array([[1, 2, 3]], np.uint8))
        return tuple(SimpleNamespace(as_tensor=lambda array=array: array) for array in arrays)


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> DaliDecoder:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"torch's stream on {device}")
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    made = DaliDecoder.__new__(DaliDecoder)
    made.device, made.pipeline, made._held, made._builder = GPU, Pipeline(), BorrowedMemory(), None
    return made


def test_canvases_are_copied_into_memory_of_torch_s(decoder: DaliDecoder) -> None:
    made = decoder([b"file"], [(0, 0)], [(4, 4)])
    event, (outputs,) = decoder._held._waiting[0]
    assert event.stream == "torch's stream on cuda:0"
    assert len(outputs) == 3
    decoder.pipeline.canvas.fill_(0xAB)  # as DALI may after its memory is released
    assert made.canvas_BSSC.unique().tolist() == [7]
    assert made.size_B2.tolist() == [[9, 8]]
    assert made.last_BC.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("tags", [[1, 6, 1, 3, 8], [1, 1, 1], [5, 7], []])
def test_both_ways_of_copying(tags: list[int]) -> None:
    """Some canvases are rejected and indices are permuted; rejected entries stay unchanged."""
    count = len(tags) + 3
    source = torch.from_numpy(np.random.default_rng(0).integers(1, 256, (count, 6, 6, 3), dtype=np.uint8))
    accepted: list[Any] = [
        (i + 1, SimpleNamespace(index=count - 1 - i, head=SimpleNamespace(orientation=tag)))
        for i, tag in enumerate(tags)
    ]
    made = [torch.zeros_like(source) for _ in range(2)]
    decode._copy_one_by_one(accepted, source, made[0])
    decode._copy_at_once(accepted, source, made[1])
    assert torch.equal(*made)
    assert made[0].flatten(1).any(1).tolist() == [False] * 3 + [True] * len(tags)
