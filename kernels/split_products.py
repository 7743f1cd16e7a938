"""Products on the tensor cores of a GPU of a float16 matrix and one that has about the precision of float32.

The other matrix is the sum of two float16 numbers, the second of which is scaled by 2**11 (Ootomo & Yokota, 2022,
"Recovering single precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak performance").
Products of float16 numbers are exact. Their sums are float32, but tensor cores round running sums towards zero: long
ones are made in pieces, which are added in float32.
Shapes: R rows of the other matrix, L terms of a sum, M columns of the product, B batch, D width, K heads, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from substyle.kernels.probe_heads import Heads
from substyle.kernels.probe_step import cross_entropy

PIECE = 4096  # terms of a sum on tensor cores
_LOWER = 2.0**11  # scale of the second number: float16 has 11 significant bits
_LARGEST = 2.0**10  # of the first numbers
_LEAST = 1e-30  # smallest bound: a unit is a normal float32 number


def available(device: torch.device) -> bool:
    """Whether there are such products on a device."""
    return device.type == "cuda" and supported()


@cache
def supported() -> bool:
    """Whether this torch has products of float16 matrices with float32 results, also on its meta device."""
    empty = torch.empty(1, 1, 1, dtype=torch.float16, device="meta")
    try:
        torch.mm(empty[0], empty[0], out_dtype=torch.float32)
        torch.bmm(empty, empty, out_dtype=torch.float32)
    except (TypeError, RuntimeError):
        return False
    return True


@dataclass(frozen=True)
class Split:
    """A matrix ``unit_R1 * (high_RL + low_RL / 2048)``.

    Attributes:
        part_2RL: both parts, float16.
        unit_R1: float32.
    """

    part_2RL: torch.Tensor
    unit_R1: torch.Tensor

    @classmethod
    def of(cls, x_RL: torch.Tensor, bound_R1: torch.Tensor) -> Split:
        """Split float32 numbers that are at most ``bound_R1`` in absolute value."""
        unit_R1 = bound_R1.clamp_min(_LEAST) / _LARGEST
        part_2RL = x_RL.new_empty(2, *x_RL.shape, dtype=torch.float16)
        torch.div(x_RL, unit_R1, out=part_2RL[0])
        left_RL = torch.addcmul(x_RL, part_2RL[0], unit_R1, value=-1.0)
        torch.mul(left_RL, _LOWER / unit_R1, out=part_2RL[1])
        return cls(part_2RL, unit_R1)

    def product(self, y_LM: torch.Tensor, bias_R1: torch.Tensor) -> torch.Tensor:
        """Product with a float16 matrix, plus a bias, (R, M) float32."""
        z_2RM = _product(self.part_2RL.flatten(0, 1), y_LM).view(2, -1, y_LM.shape[1])
        return torch.addcmul(bias_R1, z_2RM[0].add_(z_2RM[1], alpha=1 / _LOWER), self.unit_R1)


def _product(a_RL: torch.Tensor, b_LM: torch.Tensor) -> torch.Tensor:
    """Product of float16 matrices in float32."""
    whole = a_RL.shape[1] // PIECE * PIECE
    if whole <= PIECE:
        return _float32(torch.mm, a_RL, b_LM)
    a_PRS = a_RL[:, :whole].view(len(a_RL), -1, PIECE).transpose(0, 1)
    z_RM = _float32(torch.bmm, a_PRS, b_LM[:whole].view(-1, PIECE, b_LM.shape[1])).sum(0)
    return z_RM if whole == a_RL.shape[1] else z_RM.add_(_float32(torch.mm, a_RL[:, whole:], b_LM[whole:]))


def _float32(product: Callable[..., torch.Tensor], a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if a.device.type == "cpu":
        return product(a.float(), b.float())
    return product(a, b, out_dtype=torch.float32)


def split_weights(heads: Heads) -> Split:
    """Split the weights of linear heads, (K * C, D)."""
    weight_RD = heads.w1.flatten(0, 1)
    return Split.of(weight_RD, weight_RD.abs().amax(1, keepdim=True))


def linear_gradients(
    heads: Heads, weights: Split, x_BD: torch.Tensor, target_B: torch.Tensor, weight_KB: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss and gradients of linear heads, as `probe_step.linear_gradients` in float32.

    Args:
        weights: `split_weights` of the heads.
        x_BD: float16 features.
        target_B: int64 class of each row.
        weight_KB: weights of the rows.
    """
    shape = heads.w1.shape[:2]
    logits_KCB = weights.product(x_BD.T, heads.b1.view(-1, 1)).view(*shape, -1)
    loss_K, g_KCB = cross_entropy(logits_KCB, target_B, weight_KB)
    share_K = weight_KB.amax(1) / weight_KB.sum(1).clamp_min(torch.finfo(torch.float32).tiny)
    residuals = Split.of(g_KCB.flatten(0, 1), share_K.repeat_interleave(shape[1])[:, None])
    db_KC = g_KCB.sum(2)
    return loss_K, residuals.product(x_BD, torch.zeros_like(db_KC).view(-1, 1)).view(*shape, -1), db_KC
