"""Asynchronous copies between host and device, and CUDA graphs.

On the CPU everything here is there at once. On a GPU work is queued on streams: an event tells when what one thread has
queued is done, and nobody waits for more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels.errors import ConfigError


@dataclass(frozen=True)
class AsyncCopy:
    """A tensor on its way to the host.

    Attributes:
        host: where it arrives; pinned memory for one that comes from a GPU.
        done: the event after its copy, None where it is there.
        held: what its computation reads, held until `result` has been asked for: memory of other libraries is not
            torch's to keep.
    """

    host: torch.Tensor
    done: torch.cuda.Event | None = None
    held: object = None

    @staticmethod
    def of(tensor: torch.Tensor, copies: torch.cuda.Stream | None = None, held: object = None) -> AsyncCopy:
        """Begin to copy what the current stream has computed or will have.

        Args:
            tensor: of the CPU, and then nobody may write to it, or of a GPU.
            copies: the stream of the copy, so that the current one need not wait for it; the current one if None.
            held: see above.
        """
        if not tensor.is_cuda:
            return AsyncCopy(tensor)  # it is there, and nothing is read any more
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        here = torch.cuda.current_stream(tensor.device)
        stream = here if copies is None else copies
        if copies is not None:
            copies.wait_stream(here)
        with torch.cuda.stream(stream):
            host.copy_(tensor, non_blocking=True)
            tensor.record_stream(stream)  # its memory is not given to others before the copy has ended
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record(stream)
        return AsyncCopy(host, done, held)

    def result(self) -> NDArray[Any]:
        """Wait for it."""
        if self.done is not None:
            self.done.synchronize()
        return self.host.numpy()


def made(tensor: torch.Tensor) -> torch.cuda.Event | None:
    """An event after all that this thread has queued so far where the tensor lies; None on the CPU."""
    if not tensor.is_cuda:
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(tensor.device))
    return event


def after(event: torch.cuda.Event | None, device: torch.device) -> None:
    """Let what this thread queues from here on wait for an event; the thread itself goes on."""
    if event is not None:
        torch.cuda.current_stream(device).wait_event(event)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """The block queues its work on a stream of its own, behind nobody else's; on the CPU there are none."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        yield


# (B, S, S, 3) uint8; a tensor may lie on the device of the runtime that takes it
Canvas = NDArray[np.uint8] | torch.Tensor


# A network of fixed batch on a GPU whose launches are captured once in a CUDA graph.
#
# It has one input and one output buffer that live as long as it does. The copy in and the graph are queued on one
# stream, so a batch may be started while the one before it still runs; embeddings go to pinned memory of their own on a
# stream of their own, while the next batch runs.

Output = TypeVar("Output")

WARM = 3  # runs before the capture: libraries pick algorithms and allocate in the first ones


def as_batch(canvas_BSSC: Canvas, into_BSSC: torch.Tensor) -> torch.Tensor:
    """A batch as a tensor. Raises ConfigError unless it fits into the buffer: as many images or fewer, of its size."""
    canvas = torch.as_tensor(canvas_BSSC)
    shape = tuple(into_BSSC.shape[1:])
    if len(canvas) > len(into_BSSC) or canvas.dtype != torch.uint8 or tuple(canvas.shape[1:]) != shape:
        allowed = f"at most {len(into_BSSC)} images of {shape} uint8"
        raise ConfigError("canvas", f"{tuple(canvas.shape)} {canvas.dtype}", allowed)
    return canvas


def capture(
    launch: Callable[[torch.cuda.Stream], Output], device: torch.device
) -> tuple[torch.cuda.Stream, torch.cuda.CUDAGraph, Output]:
    """What a function queues on a stream, as a graph: that stream, the graph, and what the function returned.

    What it returned lies in the same memory at every replay.
    """
    with torch.no_grad(), torch.cuda.device(device):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))  # weights and buffers were made there
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                launch(stream)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # other threads may go on with calls that would end a capture of the whole process
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = launch(stream)
    return stream, graph, output


class CapturedGraph:
    """The captured graph with its buffers.

    Args:
        launch: queues the network on a stream, from the input buffer; returns its output (B, D) float32, which lies in
            the same memory at every launch that is replayed.
        canvas_BSSC: the input buffer, uint8 on a CUDA device.
    """

    def __init__(self, launch: Callable[[torch.cuda.Stream], torch.Tensor], canvas_BSSC: torch.Tensor) -> None:
        self.canvas_BSSC, self.device = canvas_BSSC, canvas_BSSC.device
        self.stream, self._graph, self.embedding_BD = capture(launch, self.device)
        self.copies = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def start(self, canvas_BSSC: Canvas) -> AsyncCopy:
        """Begin with a batch (b, S, S, 3), b ≤ B, of the GPU or the host. Nobody may write to it until it has ended."""
        canvas = as_batch(canvas_BSSC, self.canvas_BSSC)
        count = len(canvas)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))  # whoever makes the canvas queued it there
        with torch.cuda.stream(self.stream):
            self.canvas_BSSC[:count].copy_(canvas, non_blocking=True)
            if canvas.is_cuda:
                canvas.record_stream(self.stream)  # its memory is not given to others before the copy has ended
            self._graph.replay()
            # the next batch overwrites the output: a copy of it on the device is short, and leaves the host's to others
            return AsyncCopy.of(self.embedding_BD[:count].clone(), self.copies, held=canvas)


# float32 in float32: without the 10 bits of mantissa that the tensor cores of a GPU take for it where torch may.


def exact() -> None:
    """Products and convolutions of float32 are float32 from here on, in the whole process.

    Not for a block of code alone: switched to and fro, it would reach what other threads queue meanwhile.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
