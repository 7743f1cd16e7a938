"""Order of work on streams, tested with fake streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from substyle.engine import cuda
from substyle.engine.cuda import CapturedGraph, after, copy_to_host, made, own_stream

CUDA = torch.device("cuda", 0)


class Streams:
    """A fake torch.cuda whose streams record calls in one list; copies are visible to the host at once."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.here = self.Stream("current")
        self.numbers = iter(("work", "third"))
        self.CUDAGraph = lambda: SimpleNamespace(replay=lambda: self.note("replay"))

    def note(self, what: str) -> None:
        self.said.append(f"{self.here.name}: {what}")

    def Stream(self, name: object, priority: int = 0) -> SimpleNamespace:
        """Streams of different priorities are never the same one."""
        named = name if isinstance(name, str) else "copies" if priority else next(self.numbers)
        stream = SimpleNamespace(name=named, device=CUDA)
        stream.wait_stream = lambda other: self.said.append(f"{named}: waits for {other.name}")
        stream.wait_event = lambda event: self.said.append(f"{named}: waits for an event")
        stream.synchronize = lambda: None
        return stream

    def Event(self, blocking: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            record=lambda stream: self.said.append(f"{stream.name}: event"),
            synchronize=lambda: self.said.append("host waits for the event"),
        )

    def current_stream(self, device: object = None) -> SimpleNamespace:
        return self.here

    def set_device(self, device: torch.device) -> None:
        assert device == CUDA

    def set_stream(self, stream: SimpleNamespace) -> None:
        self.here = stream

    @contextmanager
    def stream(self, stream: SimpleNamespace) -> Iterator[None]:
        before, self.here = self.here, stream
        yield
        self.here = before

    @contextmanager
    def device(self, device: object) -> Iterator[None]:
        yield

    @contextmanager
    def graph(self, graph: object, stream: SimpleNamespace, capture_error_mode: str) -> Iterator[None]:
        with self.stream(stream):
            self.said.append(f"capture, {capture_error_mode}")
            yield


class OnGPU:
    """A tensor that claims to be on a GPU and records calls."""

    is_cuda, device, dtype = True, CUDA, torch.uint8

    def __init__(self, streams: Streams, name: str, host: torch.Tensor) -> None:
        self.streams, self.name, self.host, self.shape = streams, name, host, host.shape

    def __len__(self) -> int:
        return len(self.host)

    def __getitem__(self, key: slice) -> OnGPU:
        return OnGPU(self.streams, self.name, self.host[key])

    def copy_(self, other: Any, non_blocking: bool) -> None:  # noqa: ANN401
        assert non_blocking
        self.host.copy_(other.host if isinstance(other, OnGPU) else other)
        self.streams.note(f"{self.name} from {getattr(other, 'name', 'host')}")

    def clone(self) -> OnGPU:
        self.streams.note(f"clone of {self.name}")
        return OnGPU(self.streams, "embedding", self.host.clone())

    def record_stream(self, stream: SimpleNamespace) -> None:
        self.streams.said.append(f"{self.name} is kept for {stream.name}")


class Pinned(OnGPU):
    """Fake pinned memory."""

    is_cuda = False

    def numpy(self) -> np.ndarray[Any, Any]:
        return self.host.numpy()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    made = Streams()

    def empty(shape: tuple[int, ...], *, dtype: torch.dtype, device: str, pin_memory: bool) -> Pinned:
        assert pin_memory
        assert device == "cpu", "without it, the default device of the caller, which cannot be pinned"
        return Pinned(made, "host", torch.zeros(shape))

    fake = SimpleNamespace(
        cuda=made, empty=empty, device=torch.device, no_grad=torch.no_grad, uint8=torch.uint8, as_tensor=lambda x: x
    )
    monkeypatch.setattr(cuda, "torch", fake)
    monkeypatch.setattr(cuda, "torch", fake)
    return made


def test_a_batch_leaves_while_the_next_one_runs(streams: Streams) -> None:
    canvas = OnGPU(streams, "input", torch.zeros(4, 2, 2, 3))
    output = OnGPU(streams, "output", torch.arange(8.0).view(4, 2))
    graph = CapturedGraph(lambda stream: output, canvas)  # type: ignore[arg-type, return-value]
    assert streams.said == ["work: waits for current", "capture, thread_local"]
    streams.said.clear()
    pixels = OnGPU(streams, "pixels", torch.ones(3, 2, 2, 3))
    started = graph.start(pixels)  # type: ignore[arg-type]
    assert streams.said == [
        "work: waits for current",
        "work: input from pixels",
        "pixels is kept for work",
        "work: replay",
        "work: clone of output",
        "copies: waits for work",
        "copies: host from embedding",
        "embedding is kept for copies",
        "copies: event",
    ]
    assert isinstance(started, partial)
    assert started.args[-1] is pixels, "memory of another library is held by hand"
    assert canvas.host[:3].all()
    assert not canvas.host[3:].any()
    streams.said.clear()
    output.host.zero_()  # the next batch overwrites it
    np.testing.assert_array_equal(started(), [[0, 1], [2, 3], [4, 5]])
    assert streams.said == ["host waits for the event"]


def test_what_needs_no_stream_of_its_own_takes_the_current_one(streams: Streams) -> None:
    copy_to_host(OnGPU(streams, "small", torch.ones(2)))  # type: ignore[arg-type]
    assert streams.said == ["current: host from small", "small is kept for current", "current: event"]


def test_the_embedding_thread_waits_for_its_own_pixels_alone(streams: Streams) -> None:
    event = made(OnGPU(streams, "pixels", torch.ones(2)))  # type: ignore[arg-type]
    assert streams.said == ["current: event"]
    with own_stream(CUDA):
        after(event, CUDA)
        assert streams.here.name == "work"
    assert streams.said[1:] == ["work: waits for an event"]


def test_a_batch_decoded_on_another_stream_is_waited_for_and_kept(streams: Streams) -> None:
    rendering, canvas = streams.here, OnGPU(streams, "canvas", torch.ones(2))
    cuda.use_stream(cuda.side_stream(CUDA))
    event = made(canvas)  # type: ignore[arg-type]
    cuda.use_stream(rendering)  # type: ignore[arg-type]
    cuda.take(canvas, event)  # type: ignore[arg-type]
    assert streams.said == ["copies: event", "current: waits for an event", "canvas is kept for current"]
