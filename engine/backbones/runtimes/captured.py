"""A network of fixed batch on a GPU whose launches are captured once in a CUDA graph.

It has one input and one output buffer that live as long as it does. The copy in, the graph and the copy out are queued
on one stream, so a batch may be started while the one before it still runs; each has pinned memory of its own for its
embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels.errors import ConfigError

_WARM = 3  # runs before the capture: libraries pick algorithms and allocate in the first ones


def as_batch(canvas_BSSC: NDArray[np.uint8] | torch.Tensor, into_BSSC: torch.Tensor) -> torch.Tensor:
    """A batch as a tensor. Raises ConfigError unless it fits into the buffer: as many images or fewer, of its size."""
    canvas = torch.from_numpy(canvas_BSSC) if isinstance(canvas_BSSC, np.ndarray) else canvas_BSSC
    shape = tuple(into_BSSC.shape[1:])
    if len(canvas) > len(into_BSSC) or canvas.dtype != torch.uint8 or tuple(canvas.shape[1:]) != shape:
        allowed = f"at most {len(into_BSSC)} images of {shape} uint8"
        raise ConfigError("canvas", f"{tuple(canvas.shape)} {canvas.dtype}", allowed)
    return canvas


class Captured:
    """The captured graph with its buffers.

    Args:
        launch: queues the network on a stream, from the input buffer; returns its output (B, D) float32, which lies in
            the same memory at every launch that is replayed.
        canvas_BSSC: the input buffer, uint8 on a CUDA device.
    """

    def __init__(self, launch: Callable[[torch.cuda.Stream], torch.Tensor], canvas_BSSC: torch.Tensor) -> None:
        self.canvas_BSSC, self.device = canvas_BSSC, canvas_BSSC.device
        with torch.no_grad(), torch.cuda.device(self.device):
            self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self.stream.wait_stream(torch.cuda.current_stream(self.device))  # weights and buffers were made there
            with torch.cuda.stream(self.stream):
                for _ in range(_WARM):
                    launch(self.stream)
            self.stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self.stream):
                self.embedding_BD = launch(self.stream)

    def start(self, canvas_BSSC: NDArray[np.uint8] | torch.Tensor) -> Launched:
        """Begin with a batch (b, S, S, 3), b ≤ B, of the GPU or the host. Nobody may write to it until it has ended."""
        canvas = as_batch(canvas_BSSC, self.canvas_BSSC)
        count = len(canvas)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))  # whoever makes the canvas queued it there
        host_BD = torch.empty((count, self.embedding_BD.shape[1]), pin_memory=True)
        with torch.cuda.stream(self.stream):
            self.canvas_BSSC[:count].copy_(canvas, non_blocking=True)
            if canvas.is_cuda:
                canvas.record_stream(self.stream)  # its memory is not given to others before the copy has ended
            self._graph.replay()
            host_BD.copy_(self.embedding_BD[:count], non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self.stream)
        return Launched(host_BD, done, canvas)


@dataclass(frozen=True)
class Launched:
    """A batch on its way: its pinned memory, the event after its last copy, and its canvas, held until then."""

    host_BD: torch.Tensor
    done: torch.cuda.Event
    canvas_BSSC: torch.Tensor

    def result(self) -> NDArray[np.float32]:
        """Wait for it. Shape: (b, D) float32."""
        self.done.synchronize()
        return np.asarray(self.host_BD.numpy())
