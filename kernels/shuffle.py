"""Random orders of a set, computed for each position alone: no memory, and equal bits on every device."""

from __future__ import annotations

import math

import numpy as np
import torch

from substyle.kernels import philox

_FEW = 256  # items; a round of few items has few random bits
# by chi-square: of all orders of up to 7 items; of neighbours in larger sets, where 4 rounds are enough from 400 items
_ROUNDS_OF_FEW, _ROUNDS = 12, 5
_ODD = 0x2545F4914F6CDD1D  # the multiplier of xorshift64* (Vigna 2016)


class Shuffle:
    """An endless sequence that has each of ``count`` items once in each epoch of ``count`` positions.

    The order of an epoch is a permutation of 0 … count - 1: rounds of a rotation and two steps of a Feistel network on
    the two digits of an item in base √count, with modular addition (Black & Rogaway 2002). Items with a third digit, at
    most 2 √count of them, skip the network; the rotation makes them others in each round. Round keys are Philox words.

    Args:
        count: number of items, at least one.
        seed, name: determine the orders.
    """

    def __init__(self, count: int, seed: int, name: str) -> None:
        self.count = count
        self.base = min(count, max(2, math.isqrt(count)))
        rounds = _ROUNDS_OF_FEW if count < _FEW else _ROUNDS
        words = philox.words(philox.keys_of_seeds([seed]), name, 6 * rounds)
        self.keys: list[list[int]] = words.view(np.int64).reshape(rounds, 3).tolist()

    def __call__(self, position_B: torch.Tensor) -> torch.Tensor:
        """Items at positions. Shapes: (B,) int64 to (B,) int64."""
        item = position_B % self.count
        tweak = position_B // self.count * _ODD
        base, rest = self.base, self.count // self.base
        for turn, *keys in self.keys:
            item = (item + turn % self.count) % self.count
            high = item // base
            low = item - high * base
            low = (low + _mixed(high + tweak, keys[0])) % base
            high = (high + _mixed(low + tweak, keys[1])) % rest
            item = torch.where(item < base * rest, high * base + low, item)
        return item


def _mixed(values: torch.Tensor, key: int) -> torch.Tensor:
    """32 bits of a keyed hash; products wrap. Overwrites ``values``."""
    values ^= key
    values *= _ODD
    values ^= values >> 32
    values &= 0xFFFFFFFF
    return values
