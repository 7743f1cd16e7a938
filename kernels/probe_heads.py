"""State of K probe heads trained together, and the terms of their loss.

Shapes: B batch, D embedding width, K heads, L hidden layers, H hidden width (H = C for a linear head), C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import dispatch

Numbers = Sequence[float] | NDArray[np.float64]  # one per head
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # defaults of Adam (Kingma & Ba, 2015)


class Heads:
    """K heads of one shape and their Adam state. All tensors are contiguous, on one device and float32.

    Args:
        parameters: weights and biases of each layer: (K, H, D), (K, H); of a head with L hidden layers also (K, H, H),
            (K, H) of the other L - 1 and (K, C, H), (K, C) of the output layer. None is ignored.
        steps: number of Adam steps taken.
        first, second: Adam moments of each parameter, empty before the first step.
    """

    by_autograd: ClassVar[bool] = False
    """Whether heads of another kind define `logits`, whose gradients torch computes."""

    def __init__(
        self,
        *parameters: torch.Tensor | None,
        steps: int = 0,
        first: Sequence[torch.Tensor] = (),
        second: Sequence[torch.Tensor] = (),
    ) -> None:
        self.parameters = [p for p in parameters if p is not None]
        self.steps, self.first, self.second = steps, list(first), list(second)

    @property
    def layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Weights and biases of each layer; a linear head has one."""
        return list(zip(self.parameters[::2], self.parameters[1::2], strict=True))

    @property
    def w1(self) -> torch.Tensor:
        """Weights of the first layer, (K, H, D)."""
        return self.parameters[0]

    @property
    def b1(self) -> torch.Tensor:
        """Biases of the first layer, (K, H)."""
        return self.parameters[1]

    @property
    def outputs(self) -> int:
        """Number of outputs C."""
        return self.parameters[-1].shape[1]

    def like(self, parameters: Sequence[torch.Tensor]) -> Heads:
        """Heads of this kind with other parameters, without moments."""
        return Heads(*parameters)

    def logits(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Logits (K, C, B) float32 of rows, for `by_autograd`. Products in the dtype of ``x_BD``."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.w1.shape[0]

    def start(self) -> None:
        """Allocate the Adam moments, if not yet allocated."""
        if not self.first:
            self.first = [dispatch.zeros_like(p) for p in self.parameters]
            self.second = [dispatch.zeros_like(p) for p in self.parameters]

    def select(self, index: Sequence[int]) -> Heads:
        """Copy the heads at the given indices, with their moments and step count."""
        rows = torch.tensor(list(index), dtype=torch.int64, device=self.w1.device)
        parameters, first, second = ([p[rows] for p in ps] for ps in (self.parameters, self.first, self.second))
        return Heads(*parameters, steps=self.steps, first=first, second=second)


def shares(weight_KB: torch.Tensor) -> torch.Tensor:
    """Normalise the weights of each head to a sum of 1; a head whose weights are all 0 keeps them."""
    return weight_KB / weight_KB.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class Term:
    """A cross-entropy term of the loss, over a slice of the batch and a slice of the outputs.

    Attributes:
        target_B: int64 class of each row of the slice, relative to the first output of the slice.
        rows: slice of the batch.
        outputs: slice of the outputs.
        scale_K: float32 factor of the term for each head, None for 1.
        weight_KB: weights of the rows for each head, in the dtype of the heads, None for equal weights; the term is the
            weighted mean.
    """

    target_B: torch.Tensor
    rows: slice = field(default_factory=lambda: slice(None))
    outputs: slice = field(default_factory=lambda: slice(None))
    scale_K: torch.Tensor | None = None
    weight_KB: torch.Tensor | None = None
