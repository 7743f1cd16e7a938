"""Operations and bytes of a network, counted on tensors without memory.

The model: matrix products and convolutions read their inputs and write their outputs in bf16; everything between them
(normalisation, activation, residual sums) is fused into them and moves nothing of its own; the scores of attention
never leave the chip. Each product takes the longer of its arithmetic and its traffic (Williams, Waterman, Patterson:
Roofline, 2009).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from substyle.engine.estimate.devices import Device, Efficiency

BYTES = 2  # of a bf16 number


@dataclass
class Work:
    """What is to be done for a number of images.

    Attributes:
        products: (operations, bytes) of each matrix product or convolution; an operation is a multiplication or an
            addition.
        images: for how many images.
    """

    products: list[tuple[float, float]] = field(default_factory=list)
    images: int = 1

    @property
    def flop(self) -> float:
        """Operations for one image."""
        return sum(flop for flop, _ in self.products) / self.images

    @property
    def traffic(self) -> float:
        """Bytes to and from memory for one image."""
        return sum(moved for _, moved in self.products) / self.images

    def seconds(self, device: Device, efficiency: Efficiency) -> float:
        """Time for one image on one GPU."""
        compute, bandwidth = device.flops * efficiency.compute, device.bandwidth * efficiency.bandwidth
        return sum(max(flop / compute, moved / bandwidth) for flop, moved in self.products) / self.images


def of_network(network: nn.Module, x: torch.Tensor) -> Work:
    """The work of a network for a batch (B, C, H, W). Both may be on torch's meta device: nothing is computed then."""
    with torch.no_grad(), _Counter() as counter:
        network(x)
    return Work(counter.products, len(x))


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[tuple[float, float]] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's own kind of function
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            flop = float(flop_registry[packet](*args, **kwargs, out_val=out))
            outputs = out if isinstance(out, tuple) else (out,)
            sizes = [math.prod(t.shape) for t in (*args, *outputs) if isinstance(t, torch.Tensor)]
            # products of batches are attention's, and the largest of their matrices are its scores
            on_chip = max(sizes) if packet in (torch.ops.aten.bmm, torch.ops.aten.baddbmm) else 0
            self.products.append((flop, BYTES * float(sum(sizes) - on_chip)))
        return out
