"""Kind *noise*: Gaussian, impulse and shot noise per pixel and channel, with the strengths of ImageNet-C."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import noise
from substyle.pipelines.transforms.base import Arrays, Choice, kernel

Keys = NDArray[np.uint64]


@kernel(
    "gaussian_noise",
    kind="noise",
    role="train",
    parameters=[Choice("std", (0.12, 0.18, 0.26, 0.38), unit="of full range")],
)
def gaussian_noise(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Gaussian noise added to every value."""
    return noise.gaussian_noise(canvas_BSSC, args["std"], keys_B, "gaussian_noise")


@kernel(
    "impulse_noise",
    kind="noise",
    role="train",
    parameters=[Choice("amount", (0.06, 0.09, 0.17, 0.27), unit="share of values")],
)
def impulse_noise(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Salt-and-pepper noise: a share of the values becomes 0 or 255."""
    return noise.impulse_noise(canvas_BSSC, args["amount"], keys_B, "impulse_noise")


@kernel(
    "shot_noise",
    kind="noise",
    role="held_out",
    parameters=[Choice("rate", (25, 12, 5, 3), unit="photons at full range", within=(0.5, 500.0))],
)
def shot_noise(canvas_BSSC: torch.Tensor, args: Arrays, keys_B: Keys) -> torch.Tensor:
    """Poisson noise, as of a sensor in low light."""
    return noise.shot_noise(canvas_BSSC, args["rate"], keys_B, "shot_noise")
