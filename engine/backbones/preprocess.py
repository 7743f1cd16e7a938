"""From a uint8 canvas to a network's input, as part of the network's own graph."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import interpolate

from substyle.engine.backbones.spec import RGB


def cubic_matrix(side: int, target: int) -> torch.Tensor:
    """Antialiased bicubic resampling along one axis as a matrix. Shape: (target, side) float32.

    Its rows are what PyTorch's antialiased bicubic interpolation (Pillow's filter, a = -0.5) gives for unit impulses.
    """
    impulses = torch.eye(side).view(1, 1, side, side)
    return interpolate(impulses, size=(target, side), mode="bicubic", antialias=True, align_corners=False)[0, 0]


class Preprocessed(nn.Module):
    """A float network behind the uint8 interface: cast, layout, resize, normalisation, network, pooling.

    Args:
        network: takes (B, 3, side, side) float32, returns (B, D).
        canvas: canvas side S.
        side: the network's input side; resized to it by two constant matrices when it is not S.
        mean, std: normalisation of RGB in [0, 1].
    """

    def __init__(self, network: nn.Module, *, canvas: int, side: int, mean: RGB, std: RGB) -> None:
        super().__init__()
        self.network = network
        self.resizes = side != canvas
        # (x / 255 - mean) / std as one multiply and one add
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in std]).view(1, 3, 1, 1), persistent=False)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(1, 3, 1, 1)
        self.register_buffer("shift", shift, persistent=False)
        if self.resizes:
            self.register_buffer("matrix", cubic_matrix(canvas, side), persistent=False)

    def forward(self, canvas_BSSC: torch.Tensor) -> torch.Tensor:
        """(B, S, S, 3) uint8 to (B, D) float32."""
        x = canvas_BSSC.permute(0, 3, 1, 2).float()
        if self.resizes:
            matrix = self.get_buffer("matrix")
            # the libraries resize to uint8 images: clamp the cubic's overshoot as they do
            x = (matrix @ x @ matrix.T).clamp(0.0, 255.0)
        return self.network(x * self.get_buffer("scale") + self.get_buffer("shift"))  # type: ignore[no-any-return]
