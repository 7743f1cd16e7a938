"""Embeddings on their way: what runtimes give that work in the background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from substyle.engine.arriving import Canvas


class Started(Protocol):
    """Embeddings on their way."""

    def result(self) -> NDArray[np.float32]:
        """Wait for them. Shape: (B, D) float32. To be asked once."""
        ...


@runtime_checkable
class Starts(Protocol):
    """A runtime that works in the background."""

    def start(self, canvas_BSSC: Canvas) -> Started:
        """Begin with a batch. Nobody may write to the canvas until it has ended."""
        ...


@dataclass(frozen=True)
class Ended:
    """Embeddings that are there."""

    embedded_BD: NDArray[np.float32]

    def result(self) -> NDArray[np.float32]:
        """Shape: (B, D) float32."""
        return self.embedded_BD


@dataclass(frozen=True)
class Joined:
    """Embeddings of the parts of a batch."""

    parts: Sequence[Started]

    def result(self) -> NDArray[np.float32]:
        """Wait for them. Shape: (B, D) float32."""
        return np.concatenate([part.result() for part in self.parts])
