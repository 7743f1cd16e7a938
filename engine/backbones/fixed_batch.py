"""A graph of fixed batch on any number of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from substyle.engine.backbones.runtimes.openvino import OpenVINOGraph, Running


class Started(Protocol):
    """Embeddings on their way."""

    def result(self) -> NDArray[np.float32]:
        """Wait for them. Shape: (B, D) float32. To be asked once."""
        ...


def graph_batch(batch: int) -> int:
    """Batch of a compiled graph: runs of B images go through it in pieces of 8, side by side.

    On two cores, pieces of 8 on two streams of one thread are 5 to 14 % faster than 32 at once on both.
    """
    return min(batch, 8)


class FixedBatch:
    """Runs a graph of fixed batch b on any number of images: in pieces, the last of them padded.

    With a graph whose streams have one thread each, as `compile_backbone` makes it, an image's embedding is the same
    bits whatever its neighbours, its place in the batch, the padding and the number of threads. A graph of another b
    is another artefact: its embeddings lie within 1e-5 (float32) or 1e-2 (bf16) of an embedding's distance from the
    mean of all. Processors tried so far gave the same bits there too.
    """

    def __init__(self, graph: OpenVINOGraph, batch: int) -> None:
        self.graph, self.batch = graph, batch

    def __call__(self, canvas_BSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 to (B, D) float32."""
        return self.start(canvas_BSSC).result()

    def start(self, canvas_BSSC: NDArray[np.uint8]) -> Started:
        """The same in the background. Nobody may write to the canvas until it has ended."""
        pieces = [canvas_BSSC[start : start + self.batch] for start in range(0, len(canvas_BSSC), self.batch)]
        short = self.batch - len(pieces[-1])
        if short:
            padding = np.zeros((short, *canvas_BSSC.shape[1:]), np.uint8)
            pieces[-1] = np.concatenate([pieces[-1], padding])
        return _Pieces([self.graph.start([piece]) for piece in pieces], len(canvas_BSSC))


@dataclass(frozen=True)
class _Pieces:
    running: list[Running]
    count: int

    def result(self) -> NDArray[np.float32]:
        outputs = [next(iter(piece.result().values())) for piece in self.running]
        return np.concatenate(outputs)[: self.count].astype(np.float32, copy=False)
