"""`package:mobilenet_v2`: MobileNetV2 supervised on ImageNet, the features of torchvision's.

The package's blocks are flat sequences where torchvision's have a sequence for each convolution with its normalisation
and activation; the last convolution of a block has no activation, and lies flat in both.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from substyle.engine.backbones.families import checkpoints
from substyle.engine.backbones.families import timm as timm_family
from substyle.engine.backbones.families.checkpoints import State
from substyle.engine.backbones.packages import MOBILENET_V2
from substyle.engine.backbones.readout import WHOLE, Readout
from substyle.engine.backbones.spec import Backbone

_INNER = re.compile(r"(?P<block>features\.(?P<number>\d+)\.conv)\.(?P<place>\d+)\.(?P<rest>\w+)")
_TRIPLE = 3  # convolution, normalisation, activation


class MobileNetV2(nn.Module):
    """torchvision's features behind timm's interface, pooled over the last map. Weights are untrained."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import mobilenet_v2

        self.features: nn.Sequential = mobilenet_v2(weights=None).features
        self.global_pool = "avg"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, side, side) float32 to (B, 1280)."""
        x = self.features(x)
        return x.mean((2, 3)) if self.global_pool == "avg" else x.amax((2, 3))

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Another pooling: ``avg`` or ``max``; there is no classifier."""
        if num_classes or global_pool not in ("avg", "max"):
            raise ValueError(f"{num_classes} classes, pooling {global_pool!r}")
        self.global_pool = global_pool

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: list[int] | None = None,
        stop_early: bool = True,
        intermediates_only: bool = True,
    ) -> list[torch.Tensor]:
        """Maps (B, D, H, W) after blocks; of all for None. Blocks after the last one asked for are not computed."""
        count = len(self.features)
        wanted = range(count) if indices is None else [index % count for index in indices]
        found = []
        for number in range(max(wanted) + 1):
            x = self.features[number](x)
            found.append(x)
        return [found[number] for number in wanted]


def load(name: str, *, canvas: int, readout: Readout = WHOLE) -> Backbone:
    """MobileNetV2; 1280 features, the mean over the last map, and 19 blocks: stem, 17 bottlenecks, last convolution.

    Raises:
        WeightsError: the package is not installed, or its file has other tensors.
        ConfigError: a readout that the network does not have.
    """
    row = MOBILENET_V2
    path = row.path(name)
    network = MobileNetV2()
    checkpoints.fit(name, network, to_torchvision(checkpoints.read(name, path)), path.name, dropped=())
    return timm_family.wrap(
        *(name, row.architecture, network),
        canvas=canvas,
        weights=row.weights,
        licence=row.licence,
        config={"side": row.side, "mean": row.mean, "std": row.std},
        readout=readout,
    )


def to_torchvision(state: State) -> State:
    """The package's tensors by torchvision's names; keys that are none of a block keep theirs."""
    places: dict[str, int] = {}  # of each block's last tensor: its normalisation's
    for key in state:
        if found := _INNER.fullmatch(key):
            places[found["block"]] = max(places.get(found["block"], 0), int(found["place"]))
    out: State = {}
    for key, value in state.items():
        found = _INNER.fullmatch(key)
        if found is None:
            out[key] = value
            continue
        place, flat = int(found["place"]), places[found["block"]] - 1  # where the flat convolution is
        inner = f"{place // _TRIPLE}.{place % _TRIPLE}" if place < flat else f"{flat // _TRIPLE + place - flat}"
        out[f"{found['block']}.{inner}.{found['rest']}"] = value
    return out
