"""Asynchronous copies between host and device, and CUDA graphs. On the CPU all operations are synchronous."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.errors import ConfigError


def copy_to_host(
    tensor: torch.Tensor, copies: torch.cuda.Stream | None = None, held: object = None
) -> Callable[[], NDArray[Any]]:
    """Start copying a tensor computed on the current stream to the host.

    Args:
        tensor: on a GPU; or on the CPU, in which case it is not copied and must not be modified.
        copies: stream of the copy; None uses the current stream.
        held: inputs of the computation, kept alive as long as the result (torch does not track memory of other
            libraries).

    Returns:
        a function that waits for the copy and returns it.
    """
    if not tensor.is_cuda:
        return tensor.numpy
    # the default device of the caller may be a GPU, whose memory cannot be pinned
    host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    here = torch.cuda.current_stream(tensor.device)
    stream = here if copies is None else copies
    if copies is not None:
        copies.wait_stream(here)
    with torch.cuda.stream(stream):
        host.copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)  # its memory is not reused before the copy ends
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(stream)
    return partial(_copied, host, done, held)


def _copied(host: torch.Tensor, done: torch.cuda.Event, held: object) -> NDArray[Any]:
    del held
    done.synchronize()
    return host.numpy()


def made(tensor: torch.Tensor) -> torch.cuda.Event | None:
    """Record an event on the current stream of the tensor's device. Returns None on the CPU."""
    if not tensor.is_cuda:
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(tensor.device))
    return event


def after(event: torch.cuda.Event | None, device: torch.device) -> None:
    """Make the current stream wait for an event, without blocking the host."""
    if event is not None:
        torch.cuda.current_stream(device).wait_event(event)


def take(tensor: torch.Tensor, event: torch.cuda.Event | None) -> None:
    """Make the current stream wait for a tensor of another one, and keep its memory until the stream is done with it.

    Args:
        event: recorded when the tensor is complete; None on the CPU.
    """
    if event is not None:
        here = torch.cuda.current_stream(tensor.device)
        here.wait_event(event)
        tensor.record_stream(here)


def use_stream(stream: torch.cuda.Stream | None) -> None:
    """Make a stream, and its device, the current ones of this thread."""
    if stream is not None:
        torch.cuda.set_device(stream.device)
        torch.cuda.set_stream(stream)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run the block on a new CUDA stream; no effect on the CPU."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        yield


def side_stream(device: torch.device) -> torch.cuda.Stream:
    """A CUDA stream for copies between host and device, or for decoding, of high priority.

    Torch hands out 32 streams of each priority in turn. One of normal priority may be the stream of a graph that
    another thread captures, and a copy on it would be captured instead of running.
    """
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


Canvas = NDArray[np.uint8] | torch.Tensor  # (B, S, S, 3) uint8; a tensor may be on the runtime's device
Output = TypeVar("Output")

WARM = 3  # runs before the capture, in which libraries select algorithms and allocate


def as_batch(canvas_BSSC: Canvas, into_BSSC: torch.Tensor) -> torch.Tensor:
    """Convert a batch to a tensor. Raises ConfigError unless it has at most B images of the buffer's shape, uint8."""
    canvas = torch.as_tensor(canvas_BSSC)
    shape = tuple(into_BSSC.shape[1:])
    if len(canvas) > len(into_BSSC) or canvas.dtype != torch.uint8 or tuple(canvas.shape[1:]) != shape:
        allowed = f"at most {len(into_BSSC)} images of {shape} uint8"
        raise ConfigError("canvas", f"{tuple(canvas.shape)} {canvas.dtype}", allowed)
    return canvas


def _capture(
    launch: Callable[[torch.cuda.Stream], Output], device: torch.device
) -> tuple[torch.cuda.Stream, torch.cuda.CUDAGraph, Output]:
    """Capture the work that ``launch`` queues on a stream. Use `Captured`, which keeps alive what replays read."""
    with torch.no_grad(), torch.cuda.device(device):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))  # weights and buffers were initialised there
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                launch(stream)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # other threads may make calls that would invalidate a global capture
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = launch(stream)
    return stream, graph, output


class Captured(Generic[Output]):
    """Work captured in a CUDA graph.

    A graph has addresses only: it does not keep the memory at them alive. This object holds ``launch``, and so the
    weights and buffers that it refers to. ``launch`` must not refer to an owner of this object: the memory of such a
    cycle is freed late.

    Args:
        launch: queues the work on a stream and returns its output.
        device: a CUDA device.

    Attributes:
        stream: stream of the capture.
        output: output of ``launch``; each replay overwrites it.
    """

    def __init__(self, launch: Callable[[torch.cuda.Stream], Output], device: torch.device) -> None:
        self._launch = launch
        self.stream, self._graph, self.output = _capture(launch, device)

    def replay(self) -> Output:
        """Queue the work on the current stream. Returns ``output``."""
        self._graph.replay()
        return self.output


class CapturedGraph:
    """A network of fixed batch size, captured in a CUDA graph, with its input and output buffers.

    Input copy and graph run on one stream, so a batch can be started while the previous one is running. Outputs are
    copied to pinned memory on a second stream.

    Args:
        launch: queues the network on a stream, reading the input buffer; returns the output (B, D) float32.
        canvas_BSSC: input buffer, uint8 on a CUDA device.
    """

    def __init__(self, launch: Callable[[torch.cuda.Stream], torch.Tensor], canvas_BSSC: torch.Tensor) -> None:
        self.canvas_BSSC, self.device = canvas_BSSC, canvas_BSSC.device
        self._captured = Captured(launch, self.device)
        self.stream = self._captured.stream
        self.copies = side_stream(self.device)

    def start(self, canvas_BSSC: Canvas) -> Callable[[], NDArray[np.float32]]:
        """Start a batch (b, S, S, 3), b ≤ B, on GPU or host. Returns a function that waits for its embeddings (b, D).

        Do not modify the batch until it returns.
        """
        canvas = as_batch(canvas_BSSC, self.canvas_BSSC)
        count = len(canvas)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))  # the canvas is computed there
        with torch.cuda.stream(self.stream):
            self.canvas_BSSC[:count].copy_(canvas, non_blocking=True)
            if canvas.is_cuda:
                canvas.record_stream(self.stream)  # its memory is not reused before the copy ends
            embedding_BD = self._captured.replay()
            # cloned on the device, since the next batch overwrites the output
            return copy_to_host(embedding_BD[:count].clone(), self.copies, held=canvas)
