"""Rows of probe training: gathered and standardised, and dropout masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import philox
from substyle.kernels.dispatch import on_triton, upload
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
        from substyle.kernels import probe_data_triton

        check(x_RD)

        return probe_data_triton.gather(x_RD, row_B, mean_D, scale_D, out_BD, scale_R)
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


# Dropout whose masks are a pure function of (seed, step, unit), alike on every device.
#
# A unit is dropped when its random byte is below a threshold, so that the probability is rounded to 1/256. Byte j of a
# seed and step is byte j % 16 (of four words, low bytes first) of Philox at counter (j // 16, step, name low, name
# high) and key ``seed``, with the name "dropout"; units are counted through the (H, B) values of one mask. Nothing is
# kept between steps: a run that is resumed at step n goes on with the masks it would have had.

LEVELS = 256  # of the random bytes


def masks_(out_SHB: torch.Tensor, seeds: Sequence[int], step: int, threshold: int) -> torch.Tensor:
    """Draw the masks of a step, True where a unit is kept. Shape: (S, H, B) bool, returned.

    Args:
        out_SHB: contiguous, one mask for each of the S seeds.
        step: of training; below 2**32.
        threshold: 256 times the probability of being dropped.
    """
    _check(step, threshold)
    if on_triton(out_SHB):
        from substyle.kernels import probe_data_triton

        return probe_data_triton.masks_(out_SHB, seeds, step, threshold)
    kept = random_bytes(seeds, step, out_SHB[0].numel() if len(out_SHB) else 0) >= threshold
    return out_SHB.copy_(torch.from_numpy(kept).view(out_SHB.shape))


def relu_drop_(hidden_KHB: torch.Tensor, seeds: Sequence[int], step: int, threshold: int) -> torch.Tensor:
    """Rectify a hidden layer and drop units, in place. Shape: (K, H, B) float32, bfloat16 or float16, returned.

    What is kept is not scaled. A unit passes gradient where it is above 0, so that the masks need not be kept.

    Args:
        hidden_KHB: contiguous; head k has the mask of seed k % S.
        seeds, step, threshold: as in :func:`masks_`.
    """
    _check(step, threshold)
    heads, hidden, batch = hidden_KHB.shape
    if not seeds or heads % len(seeds):
        raise ConfigError("seeds", len(seeds), f"a divisor of the {heads} heads")
    if on_triton(hidden_KHB):
        where = hidden_KHB.device
        return keyed_relu_drop_(hidden_KHB, device_keys(seeds, where), device_steps([step], where), threshold)
    masks = torch.empty(len(seeds), hidden, batch, dtype=torch.bool, device=hidden_KHB.device)
    dropped = masks_(masks, seeds, step, threshold).logical_not_()
    hidden_KHB.relu_().view(-1, *masks.shape).masked_fill_(dropped, 0.0)
    return hidden_KHB


def keyed_relu_drop_(
    hidden_KHB: torch.Tensor,
    key_S: torch.Tensor,
    step_1: torch.Tensor,
    threshold: int,
    bias_KH: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`relu_drop_` after a bias is added, with seeds and step where the layer is: a GPU may repeat it by itself.

    Args:
        hidden_KHB: contiguous; head k has the mask of seed k % S.
        key_S: of :func:`device_keys`.
        step_1: one of :func:`device_steps`.
        threshold: as in :func:`masks_`.
        bias_KH: float32, None for none.
    """
    if on_triton(hidden_KHB):
        from substyle.kernels import probe_data_triton

        return probe_data_triton.relu_drop_(hidden_KHB, key_S, step_1, threshold, bias_KH)
    if bias_KH is not None:
        hidden_KHB.copy_(hidden_KHB.float() + bias_KH[:, :, None])
    return relu_drop_(hidden_KHB, key_S.tolist(), int(step_1) & 0xFFFFFFFF, threshold)


def device_keys(seeds: Sequence[int], device: torch.device) -> torch.Tensor:
    """Philox keys of seeds on a device, with the same bits. Shape: (S,) int64."""
    return upload(keys_of_seeds(seeds).view(np.int64), device)


def device_steps(steps: Sequence[int], device: torch.device) -> torch.Tensor:
    """Numbers of steps below 2**32 on a device, with the same bits. Shape: (n,) int32."""
    return upload(np.asarray(steps, np.uint32).view(np.int32), device)


def random_bytes(seeds: Sequence[int], step: int, count: int) -> NDArray[np.uint8]:
    """The first random bytes of each seed at a step. Shape: (S, count)."""
    name = philox.name_word(DROPOUT)
    blocks = np.arange(-(-count // 16), dtype=np.uint64)[None]
    words = [np.full((1, 1), word, np.uint64) for word in (step, name & 0xFFFFFFFF, name >> 32)]
    key_S1 = keys_of_seeds(seeds)[:, None]
    lanes = philox.philox_4x32((blocks, *words), (key_S1 & np.uint64(0xFFFFFFFF), key_S1 >> np.uint64(32)))
    drawn = np.stack(lanes, axis=-1).astype("<u4").reshape(len(seeds), 4 * blocks.size)
    return drawn.view(np.uint8)[:, :count]


def _check(step: int, threshold: int) -> None:
    if not 0 <= step < 2**32:
        raise ConfigError("step", step, "a whole number in [0, 2**32)")
    if not 0 <= threshold <= LEVELS:
        raise ConfigError("threshold", threshold, f"a whole number from 0 to {LEVELS}")
