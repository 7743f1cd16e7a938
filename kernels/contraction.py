"""Contracting convolution between instance normalisations: 3 × 3, stride 2, borders mirrored about the edge pixels.

It normalises as it loads and sums statistics as it stores, so that normalised and padded maps are never in memory.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from substyle.errors import ConfigError
from substyle.kernels.dispatch import on_triton


def contract(
    x_XBHWC: torch.Tensor, factor_GBC: torch.Tensor, offset_GBC: torch.Tensor, kernel_TCO: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Convolve ``relu(x * factor + offset)``, computed in float32 and rounded to the dtype of the maps.

    Args:
        x_XBHWC: maps of B images in G styles, or (X = 1) shared by all styles; H and W are even.
        factor_GBC, offset_GBC: normalisation per style, image and channel, float32.
        kernel_TCO: weights of the 9 taps, row by row, in the dtype of the maps; see :func:`taps`.

    Returns:
        maps (G, B, H / 2, W / 2, O) in the same dtype, and mean and variance of their channels (G, B, O), float32.
    """
    channels = kernel_TCO.shape[1:]
    if on_triton(x_XBHWC) and all(n >= 16 and n & (n - 1) == 0 for n in channels):  # tiles of tensor cores
        from substyle.kernels import contraction_triton

        given = (each.contiguous() for each in (x_XBHWC, factor_GBC, offset_GBC, kernel_TCO))
        return contraction_triton.contract(*given)
    return contract_reference(x_XBHWC, factor_GBC, offset_GBC, kernel_TCO)


def contract_reference(
    x_XBHWC: torch.Tensor, factor_GBC: torch.Tensor, offset_GBC: torch.Tensor, kernel_TCO: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`contract` in plain torch, on any device, style by style."""
    weight_OCKK = kernel_TCO.permute(2, 1, 0).view(kernel_TCO.shape[2], kernel_TCO.shape[1], 3, 3)
    made = []
    for style, (factor_BC, offset_BC) in enumerate(zip(factor_GBC, offset_GBC, strict=True)):
        scaled_BHWC = x_XBHWC[style % len(x_XBHWC)].float() * factor_BC[:, None, None] + offset_BC[:, None, None]
        y_BHWC = functional.relu(scaled_BHWC).to(x_XBHWC.dtype)
        padded_BCHW = functional.pad(y_BHWC.permute(0, 3, 1, 2), (1, 1, 1, 1), "reflect")
        made.append(functional.conv2d(padded_BCHW, weight_OCKK, None, 2).permute(0, 2, 3, 1))
    out_GBHWO = torch.stack(made)
    variance_GBO, mean_GBO = torch.var_mean(out_GBHWO.float(), dim=(2, 3), correction=0)
    return out_GBHWO, mean_GBO, variance_GBO


def taps(weight_OCKK: torch.Tensor) -> torch.Tensor:
    """Weights of a 3 × 3 convolution by tap. Shape: (O, C, 3, 3) to (9, C, O). Raises ConfigError for other sizes."""
    if weight_OCKK.shape[2:] != (3, 3):
        raise ConfigError("weight.shape", tuple(weight_OCKK.shape), "(O, C, 3, 3)")
    return weight_OCKK.permute(2, 3, 1, 0).flatten(0, 1).contiguous()
