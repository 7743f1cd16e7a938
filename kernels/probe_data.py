"""Input rows of probe training (gathering, standardisation, int8 quantisation) and dropout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from substyle.errors import ConfigError
from substyle.kernels import philox
from substyle.kernels.dispatch import fused, upload
from substyle.kernels.philox import DROPOUT, keys_of_seeds

KINDS = (torch.float16, torch.float32, torch.int8)


def gather(
    x_RD: torch.Tensor,
    row_B: torch.Tensor,
    mean_D: torch.Tensor,
    scale_D: torch.Tensor,
    out_BD: torch.Tensor,
    scale_R: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute ``(x[row] * scale_R[row] - mean) * scale`` in float32, write it to ``out_BD`` and return that.

    Args:
        x_RD: contiguous table, float16, float32 or int8.
        row_B: int64 row indices in [0, R).
        mean_D, scale_D: float32.
        out_BD: contiguous output, bfloat16 or float32; results are rounded to its dtype.
        scale_R: float32 factor of each row, None for 1.

    Raises:
        ConfigError: the dtype of the table is not supported (GPU only).
        IndexError: a row index is out of range (CPU only).
    """
    if x_RD.device.type != "cpu":
        check(x_RD)
    _gather(out_BD, x_RD, row_B, mean_D, scale_D, *(() if scale_R is None else (scale_R,)))
    return out_BD


@fused
def _gather(
    out_BD: torch.Tensor,
    x_RD: torch.Tensor,
    row_B: torch.Tensor,
    mean_D: torch.Tensor,
    scale_D: torch.Tensor,
    *scale_R: torch.Tensor,
) -> None:
    out_BD.copy_(reference(x_RD, row_B, mean_D, scale_D, *scale_R))


def reference(
    x_RD: torch.Tensor,
    row_B: torch.Tensor,
    mean_D: torch.Tensor,
    scale_D: torch.Tensor,
    scale_R: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`gather` in torch, without rounding. Shape: (B, D) float32."""
    x_BD = x_RD.index_select(0, row_B).float()
    if scale_R is not None:
        x_BD.mul_(scale_R.index_select(0, row_B)[:, None])
    return x_BD.sub_(mean_D).mul_(scale_D)


def quantise(x_BD: torch.Tensor, mean_D: torch.Tensor, scale_D: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise rows to int8: ``z = (x - mean) * scale``, ``factor = max |z| / 127``, ``round(z / factor)``.

    Returns:
        int8 rows (B, D) and their factors, (B,) float32; the factor of a row with non-finite values is not finite.
    """
    z_BD = (x_BD.float() - mean_D) * scale_D
    factor_B = z_BD.abs().amax(1) / 127.0
    z_BD /= factor_B.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    return z_BD.round_().to(torch.int8), factor_B


def check(x_RD: torch.Tensor) -> None:
    """Raise ConfigError if the dtype of the table is not supported."""
    if x_RD.dtype not in KINDS:
        raise ConfigError("table.dtype", x_RD.dtype, ", ".join(map(str, KINDS)))


# Dropout masks are a pure function of (seed, step, unit) on every device.
#
# A unit is dropped if its random byte is below a threshold, so probabilities are multiples of 1/256. Byte j of a seed
# and step is byte j % 16 (of four words, low bytes first) of Philox at counter (j // 16, step, name low, name high) and
# key ``seed``, with the name "dropout"; j is the flat index of the unit in the (H, B) mask.

LEVELS = 256  # values of a random byte
_WORD = philox.name_word(DROPOUT)


def draw_masks(kept_nSHB: torch.Tensor, seeds: Sequence[int], first: int, threshold: int) -> None:
    """Draw the dropout masks of n training steps, one per seed; True keeps a unit.

    Args:
        kept_nSHB: contiguous output, bool. The H units may be those of several layers.
        first: number of the first step; all are below 2**32.
        threshold: 256 times the dropout probability.
    """
    kept_nSU, key_S = kept_nSHB.flatten(2), keys_of_seeds(seeds)
    steps, _, count = kept_nSU.shape
    if kept_nSU.device.type == "cpu":
        bits = np.empty(-(-count // 2), np.uint16)
        for step, kept_SU in enumerate(kept_nSU.numpy(), first):
            for key, kept_U in zip(key_S, kept_SU, strict=True):
                philox.bits16(key, DROPOUT, bits, stream=step)
                np.greater_equal(bits.view(np.uint8)[:count], threshold, out=kept_U)
        return
    words_nSV4 = torch.empty(steps, len(key_S), -(-count // 16), 4, dtype=torch.int32, device=kept_nSU.device)
    numbers = np.arange(first, first + steps)
    draw_words(words_nSV4, *(upload(v, kept_nSU.device) for v in (key_S.view(np.int64), numbers)))
    torch.ge(words_nSV4.view(torch.uint8).flatten(2)[:, :, :count], threshold, out=kept_nSU)


@fused
def draw_words(out_nSV4: torch.Tensor, key_S: torch.Tensor, step_n: torch.Tensor) -> None:
    """Random words of the first V blocks of each step and seed, bits as int32."""
    block = torch.arange(out_nSV4.shape[2], device=out_nSV4.device)
    counter = block, step_n[:, None, None], _WORD & 0xFFFFFFFF, _WORD >> 32
    key_S1 = key_S[:, None]
    words = philox.philox_4x32_torch(counter, (key_S1 & 0xFFFFFFFF, key_S1 >> 32 & 0xFFFFFFFF))
    out_nSV4.copy_(torch.stack(words, -1))
