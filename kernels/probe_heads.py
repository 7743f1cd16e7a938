"""The state of K probe heads that train at once, and one term of their loss.

Shapes: B batch, D embedding width, K heads, H hidden width (H = C for a linear head), C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.kernels import dispatch

Numbers = Sequence[float] | NDArray[np.float64]  # one for each head
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # Adam's: Kingma & Ba (2015), their defaults


@dataclass
class Heads:
    """K heads of one shape, with their Adam moments. All tensors are float32, contiguous and on one device.

    Attributes:
        w1: (K, H, D) first layer; H is the number of outputs of a linear head.
        b1: (K, H).
        w2: (K, C, H) second layer, None for linear heads.
        b2: (K, C), None for linear heads.
        steps: Adam steps taken so far.
        first, second: Adam's moments of each parameter; empty before the first step.
    """

    w1: torch.Tensor
    b1: torch.Tensor
    w2: torch.Tensor | None = None
    b2: torch.Tensor | None = None
    steps: int = field(default=0, kw_only=True)
    first: list[torch.Tensor] = field(default_factory=list, kw_only=True)
    second: list[torch.Tensor] = field(default_factory=list, kw_only=True)
    _copies: dict[int, tuple[int, torch.Tensor]] = field(default_factory=dict, init=False, repr=False)

    @property
    def parameters(self) -> list[torch.Tensor]:
        """The two or four parameter tensors, first axis K."""
        return [p for p in (self.w1, self.b1, self.w2, self.b2) if p is not None]

    @property
    def outputs(self) -> int:
        """C."""
        return self.b1.shape[1] if self.b2 is None else self.b2.shape[1]

    def __len__(self) -> int:
        return self.w1.shape[0]

    def start(self) -> None:
        """Make Adam's moments before the first step."""
        if not self.first:
            self.first = [dispatch.zeros_like(p) for p in self.parameters]
            self.second = [dispatch.zeros_like(p) for p in self.parameters]

    def lowered(self, place: int, dtype: torch.dtype) -> torch.Tensor:
        """``parameters[place]`` in another dtype; the copy is kept and made anew only after the parameter changed.

        torch counts the changes that it makes to a tensor, but not those of its fused Adam: whatever changes
        parameters uncounted must call :meth:`changed`, or change the copy (:meth:`low_copy`) too.
        """
        parameter = self.parameters[place]
        if parameter.dtype == dtype:
            return parameter
        version, copy = self._copies.get(place, (-1, None))
        if copy is None or copy.dtype != dtype:
            copy = dispatch.copy(parameter, dtype)
        elif version != parameter._version:
            copy.copy_(parameter)
        self._copies[place] = parameter._version, copy
        return copy

    def low_copy(self, place: int) -> torch.Tensor | None:
        """The copy of ``parameters[place]`` in bfloat16 if it is up to date; any other becomes stale."""
        version, copy = self._copies.get(place, (-1, None))
        if copy is None:
            return None
        if version == self.parameters[place]._version and copy.dtype == torch.bfloat16:
            return copy
        self._copies[place] = -1, copy
        return None

    def changed(self) -> None:
        """Mark every copy as stale: the parameters have changed."""
        self._copies = {place: (-1, copy) for place, (_, copy) in self._copies.items()}

    def select(self, index: Sequence[int]) -> Heads:
        """A copy with only some of the heads, moments and step count included."""
        rows = torch.tensor(list(index), dtype=torch.int64, device=self.w1.device)
        parameters, first, second = ([p[rows] for p in ps] for ps in (self.parameters, self.first, self.second))
        return Heads(*parameters, steps=self.steps, first=first, second=second)


def shares(weight_KB: torch.Tensor) -> torch.Tensor:
    """Weights of each head scaled to a sum of 1; all 0 stay 0."""
    return weight_KB / weight_KB.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class Term:
    """One cross-entropy of the loss: over some rows of the batch and some of the outputs.

    Attributes:
        target_B: int64 target of each of its rows, counted from the first of its outputs.
        rows: its rows of the batch.
        outputs: its outputs.
        scale_K: float32 factor of its loss for each head, None for 1.
        weight_KB: float32 weight of each row for each head, None for equal ones; the loss is the weighted mean.
    """

    target_B: torch.Tensor
    rows: slice = field(default_factory=lambda: slice(None))
    outputs: slice = field(default_factory=lambda: slice(None))
    scale_K: torch.Tensor | None = None
    weight_KB: torch.Tensor | None = None
