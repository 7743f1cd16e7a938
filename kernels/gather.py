"""Rows of a table of embeddings, standardised: of float16 or float32 as they are, of int8 with a scale for each row."""

from __future__ import annotations

import torch

from substyle.kernels import probe_native
from substyle.kernels.dispatch import on_triton
from substyle.kernels.errors import ConfigError

KINDS = (torch.float16, torch.float32, torch.int8)
_COMPILED = (torch.float16, torch.float32)  # what the C kernel reads


def gather(
    x_RD: torch.Tensor,
    row_B: torch.Tensor,
    mean_D: torch.Tensor,
    scale_D: torch.Tensor,
    out_BD: torch.Tensor,
    scale_R: torch.Tensor | None = None,
) -> torch.Tensor:
    """``out = (x[row] * scale_R[row] - mean) * scale``, in float32, then rounded to the type of ``out``, returned.

    Args:
        x_RD: the table, contiguous: float16, float32 or int8.
        row_B: int64 rows of it, each at least 0 and below R.
        mean_D, scale_D: float32.
        out_BD: contiguous, bfloat16 or float32.
        scale_R: float32 factor of each row, None for 1.

    Raises:
        ConfigError: arguments of other types or shapes.
        IndexError: a row that is not there; on a GPU that is not looked for.
    """
    if on_triton(x_RD):
        from substyle.kernels import gather_triton

        check(x_RD)

        return gather_triton.gather(x_RD, row_B, mean_D, scale_D, out_BD, scale_R)
    if scale_R is None and x_RD.dtype in _COMPILED and probe_native.available(out_BD.device, out_BD.dtype):
        probe_native.gather(x_RD.numpy(), row_B.numpy(), mean_D, scale_D, out_BD)
        return out_BD
    return out_BD.copy_(reference(x_RD, row_B, mean_D, scale_D, scale_R))


def reference(
    x_RD: torch.Tensor,
    row_B: torch.Tensor,
    mean_D: torch.Tensor,
    scale_D: torch.Tensor,
    scale_R: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same in torch. Shape: (B, D) float32."""
    x_BD = x_RD.index_select(0, row_B).float()
    if scale_R is not None:
        x_BD.mul_(scale_R.index_select(0, row_B)[:, None])
    return x_BD.sub_(mean_D).mul_(scale_D)


def quantise(x_BD: torch.Tensor, mean_D: torch.Tensor, scale_D: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as int8: ``(x - mean) * scale``, divided by its largest value / 127 and rounded.

    Returns:
        int8 rows (B, D) and the factor of each, (B,) float32; it is not finite where one of the row's numbers is not.
    """
    z_BD = (x_BD.float() - mean_D) * scale_D
    factor_B = z_BD.abs().amax(1) / 127.0
    z_BD /= factor_B.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    return z_BD.round_().to(torch.int8), factor_B


def check(x_RD: torch.Tensor) -> None:
    """Raise ConfigError for a table of another type."""
    if x_RD.dtype not in KINDS:
        raise ConfigError("table.dtype", x_RD.dtype, ", ".join(map(str, KINDS)))
