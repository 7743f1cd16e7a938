"""A network of fixed batch on a GPU whose launches are captured once in a CUDA graph.

It has one input and one output buffer that live as long as it does. The copy in and the graph are queued on one stream,
so a batch may be started while the one before it still runs; embeddings go to pinned memory of their own on a stream of
their own, while the next batch runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from substyle.engine.arriving import Arriving, Canvas
from substyle.kernels.errors import ConfigError

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


class Captured:
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

    def start(self, canvas_BSSC: Canvas) -> Arriving:
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
            return Arriving.of(self.embedding_BD[:count].clone(), self.copies, held=canvas)
