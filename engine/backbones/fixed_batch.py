"""A graph of fixed batch on any number of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.arriving import Canvas
from substyle.engine.backbones.runtimes.openvino import OpenVINOGraph, Running
from substyle.engine.backbones.started import Joined, Started, Starts


class FixedBatch:
    """Runs a graph of fixed batch b on any number of images: in pieces, the last of them padded.

    With a graph whose streams have one thread each, as `compile_backbone` makes it, an image's embedding is the same
    bits whatever its neighbours, its place in the batch, the padding and the number of threads. A graph of another b
    is another artefact: its embeddings lie within 1e-5 (float32) or 1e-2 (bf16) of an embedding's distance from the
    mean of all. Processors tried so far gave the same bits there too.
    """

    def __init__(self, graph: OpenVINOGraph, batch: int) -> None:
        self.graph, self.batch = graph, batch

    def __call__(self, canvas_BSSC: Canvas) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 to (B, D) float32."""
        return self.start(canvas_BSSC).result()

    def start(self, canvas_BSSC: Canvas) -> Started:
        """The same in the background. Nobody may write to the canvas until it has ended."""
        return _Pieces(self.begin(canvas_BSSC), len(canvas_BSSC))

    def begin(self, canvas_BSSC: Canvas) -> list[Running]:
        """The pieces of a batch on their way, with all outputs of the graph; the last may end in padding."""
        canvas = canvas_BSSC.numpy(force=True) if isinstance(canvas_BSSC, torch.Tensor) else canvas_BSSC
        pieces = [canvas[start : start + self.batch] for start in range(0, len(canvas), self.batch)]
        short = self.batch - len(pieces[-1])
        if short:
            padding = np.zeros((short, *canvas.shape[1:]), np.uint8)
            pieces[-1] = np.concatenate([pieces[-1], padding])
        return [self.graph.start([piece]) for piece in pieces]


@dataclass(frozen=True)
class _Pieces:
    running: list[Running]
    count: int

    def result(self) -> NDArray[np.float32]:
        outputs = [next(iter(piece.result().values())) for piece in self.running]
        return np.concatenate(outputs)[: self.count].astype(np.float32, copy=False)


class InPieces:
    """Runs a network that takes b images or fewer, and pads them itself, on any number of them.

    Args:
        network: begins with at most b images.
        batch: b.
    """

    def __init__(self, network: Starts, batch: int) -> None:
        self.network, self.batch = network, batch

    def __call__(self, canvas_BSSC: Canvas) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 to (B, D) float32."""
        return self.start(canvas_BSSC).result()

    def start(self, canvas_BSSC: Canvas) -> Started:
        """The same in the background. Nobody may write to the canvas until it has ended."""
        firsts = range(0, max(len(canvas_BSSC), 1), self.batch)
        return Joined([self.network.start(canvas_BSSC[first : first + self.batch]) for first in firsts])
