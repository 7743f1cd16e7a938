"""Input rows of probe training (gathering, standardisation, int8 quantisation) and dropout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import philox
from substyle.kernels.dispatch import fused, on_triton, upload
from substyle.kernels.errors import ConfigError
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


# Dropout masks are a pure function of (seed, step, unit) on every device, so a resumed run draws the same masks.
#
# A unit is dropped if its random byte is below a threshold, so probabilities are multiples of 1/256. Byte j of a seed
# and step is byte j % 16 (of four words, low bytes first) of Philox at counter (j // 16, step, name low, name high) and
# key ``seed``, with the name "dropout"; j is the flat index of the unit in the (H, B) mask.

LEVELS = 256  # values of a random byte


def masks(seeds: Sequence[int], step: int, threshold: int, shape: Sequence[int]) -> torch.Tensor:
    """Dropout masks of a training step, one per seed; True keeps a unit. Shape: (S, H, B) bool.

    Args:
        step: training step, below 2**32.
        threshold: 256 times the dropout probability.
        shape: (H, B).
    """
    hidden, batch = shape
    kept = random_bytes(seeds, step, hidden * batch) >= threshold
    return torch.from_numpy(kept).view(len(seeds), hidden, batch)


def relu_drop_(
    hidden_KHB: torch.Tensor,
    key_S: torch.Tensor,
    step_1: torch.Tensor,
    threshold: int,
    bias_KH: torch.Tensor | None = None,
) -> torch.Tensor:
    """Add a bias, then apply ReLU and dropout to a hidden layer in place, without scaling kept units, and return it.

    A unit passes gradient exactly where it is positive, so the backward pass does not need the masks. Seeds and step
    are tensors, so CUDA graphs can replay it.

    Args:
        hidden_KHB: contiguous, float32, bfloat16 or float16; head k uses the mask of seed k % S, see :func:`masks`.
        key_S: seeds, from :func:`device_keys`.
        step_1: step, from :func:`device_steps`.
        threshold: as in :func:`masks`.
        bias_KH: float32, None for no bias.
    """
    if on_triton(hidden_KHB):
        from substyle.kernels import probe_data_triton

        return probe_data_triton.relu_drop_(hidden_KHB, key_S, step_1, threshold, bias_KH)
    if bias_KH is not None:
        hidden_KHB.copy_(hidden_KHB.float() + bias_KH[:, :, None])
    kept_SHB = masks(key_S.tolist(), int(step_1) & 0xFFFFFFFF, threshold, hidden_KHB.shape[1:]).to(hidden_KHB.device)
    hidden_KHB.relu_().view(-1, *kept_SHB.shape).masked_fill_(~kept_SHB, 0.0)
    return hidden_KHB


def device_keys(seeds: Sequence[int], device: torch.device) -> torch.Tensor:
    """Copy the Philox keys of seeds to a device, uint64 bits as int64. Shape: (S,)."""
    return upload(keys_of_seeds(seeds).view(np.int64), device)


def device_steps(steps: Sequence[int], device: torch.device) -> torch.Tensor:
    """Copy step numbers below 2**32 to a device, uint32 bits as int32. Shape: (n,)."""
    return upload(np.asarray(steps, np.uint32).view(np.int32), device)


def random_bytes(seeds: Sequence[int], step: int, count: int) -> NDArray[np.uint8]:
    """First ``count`` random bytes of each seed at a step. Shape: (S, count)."""
    name = philox.name_word(DROPOUT)
    blocks = np.arange(-(-count // 16), dtype=np.uint64)[None]
    words = [np.full((1, 1), word, np.uint64) for word in (step, name & 0xFFFFFFFF, name >> 32)]
    key_S1 = keys_of_seeds(seeds)[:, None]
    lanes = philox.philox_4x32((blocks, *words), (key_S1 & np.uint64(0xFFFFFFFF), key_S1 >> np.uint64(32)))
    drawn = np.stack(lanes, axis=-1).astype("<u4").reshape(len(seeds), 4 * blocks.size)
    return drawn.view(np.uint8)[:, :count]
