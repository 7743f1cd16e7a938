"""Eager float32 torch: the reference of the gate, and the runtime of controls that are plain arithmetic."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


class TorchModule:
    """A module with the canvas interface, run eagerly in float32.

    Args:
        module: takes uint8 (B, S, S, 3), returns (B, D) float32.
    """

    name = "torch"
    precision = "fp32"

    def __init__(self, module: nn.Module) -> None:
        # channels_last is the layout the canvas has; convolutions on a CPU are about twice as fast in it
        self.module = module.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, canvas_BSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 of any B to (B, D) float32."""
        with torch.inference_mode():
            return np.asarray(self.module(torch.from_numpy(canvas_BSSC)).float().numpy())
