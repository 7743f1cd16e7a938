"""A kernel to be checked: its inputs, its reference, how far it may lie from it, and the work it must do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.roofline import Least
from substyle.kernels import philox

Work = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Tolerance:
    """How far bytes may lie from the reference.

    Attributes:
        levels: difference, of bytes a whole one, that at most a share ``beyond`` of the values may exceed.
        beyond: that share.
        differing: largest share of values that differ at all; one value more is always allowed unless it is 0.
    """

    levels: float = 0
    beyond: float = 0.0
    differing: float = 0.0


EXACT = Tolerance()
SAMPLED, WARPED, PRINTED = Tolerance(1, 0.0, 0.002), Tolerance(1, 0.0, 0.005), Tolerance(1, 0.001, 0.01)


@dataclass(frozen=True)
class Case:
    """One kernel on one batch.

    Attributes:
        name: of the kernel.
        work: runs it on the device.
        expected: what the CPU's reference gives for the images of ``picked``.
        picked: which images of the result are compared, along axis ``axis``.
        least: the work that must be done for the batch.
        images: of the batch, or what is counted in their place.
        unit: what that is.
    """

    name: str
    work: Work
    expected: Work
    picked: list[int]
    tolerance: Tolerance
    least: Least
    images: int
    axis: int = 0
    unit: str = "images"


@dataclass(frozen=True)
class Made:
    """Pictures and what images draw, on the CPU, and where kernels run."""

    canvas: torch.Tensor
    keys: philox.U64
    picked: list[int]
    device: torch.device

    @property
    def shape(self) -> tuple[int, int, int, int]:
        batch, height, width, channels = self.canvas.shape
        return batch, height, width, channels

    def cycled(self, values: tuple[float, ...]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """The values in turn, one for each image."""
        return np.resize(np.array(values, np.float32), len(self.canvas))

    def drawn(self, low: float, high: float, *shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """Uniform numbers (B, *shape)."""
        return np.random.default_rng(1).uniform(low, high, (len(self.canvas), *shape)).astype(np.float32)


def made(batch: int, height: int, width: int, checked: int, device: torch.device) -> Made:
    """Random pictures, of which the first ones and the last are compared."""
    canvas = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    picked = sorted({*range(min(checked, batch) - 1), batch - 1})
    return Made(torch.from_numpy(canvas), philox.image_keys(0, [f"{i}" for i in range(batch)]), picked, device)
