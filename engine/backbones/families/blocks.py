"""Layers of a network: the pooled output of one block, or of several in one pass."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from substyle.engine.backbones.export import Preprocessed
from substyle.engine.backbones.spec import Backbone, Readout
from substyle.kernels.errors import ConfigError


class PooledBlocks(nn.Module):
    """The outputs of blocks, pooled and concatenated.

    Args:
        network: a network with `forward_intermediates`, as in timm and OpenCLIP.
        places: index and pooling of each block: ``cls``, ``avg`` or ``max``.
    """

    def __init__(self, network: nn.Module, places: Sequence[tuple[int, str]]) -> None:
        super().__init__()
        self.network, self.places = network, tuple(places)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, side, side) float32 to (B, D), D being the sum over blocks."""
        indices = sorted({index for index, _ in self.places})
        found = dict(zip(indices, intermediates(self.network, x, indices), strict=True))
        pooled = [_pool(*found[index], pool) for index, pool in self.places]
        return torch.cat(pooled, dim=1) if len(pooled) > 1 else pooled[0]


def _pool(map_BDHW: torch.Tensor, prefix_BPD: torch.Tensor | None, pool: str) -> torch.Tensor:
    if pool == "cls":
        assert prefix_BPD is not None
        return prefix_BPD[:, 0]
    return map_BDHW.mean((2, 3)) if pool == "avg" else map_BDHW.amax((2, 3))


def intermediates(
    network: nn.Module, x: torch.Tensor, indices: list[int] | None
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Compute the outputs of blocks, or all blocks for None: maps (B, D, H, W) and prefix tokens (B, P, D), if any.

    Blocks after the last index are not computed.
    """
    call: Any = network.forward_intermediates
    options: dict[str, Any] = {"indices": indices, "stop_early": True, "intermediates_only": True}
    known = inspect.signature(call).parameters
    for tokens in ("return_prefix_tokens", "output_extra_tokens"):
        # timm's relative-position ViTs raise instead of returning no tokens
        if tokens in known and getattr(network, "num_prefix_tokens", None) != 0:
            options[tokens] = True
    found = call(x, **options)
    if isinstance(found, dict):  # OpenCLIP
        maps = found["image_intermediates"]
        return list(zip(maps, found.get("image_intermediates_prefix", [None] * len(maps)), strict=True))
    return [each if isinstance(each, tuple) else (each, None) for each in found]


def block(name: str, network: nn.Module, readout: Readout, *, side: int, own: str | None) -> tuple[nn.Module, str]:
    """Return a network that outputs a pooled block, and a description of the pooling.

    Args:
        name: name of the backbone, for errors.
        network: on any device, including meta.
        readout: a readout with a layer.
        side: input side in pixels.
        own: timm's name of the network's default pooling.

    Raises:
        ConfigError: the network has no such block, or the block no such pooling.
    """
    if readout.head == "projection":
        raise ConfigError(f"backbone {name}", f"head=projection of block {readout.layer}", "projection without layer")
    if not hasattr(network, "forward_intermediates"):
        raise ConfigError(f"backbone {name}", f"layer={readout.layer}", "no layer; this network does not expose blocks")
    found = _all_blocks(network, side)
    index, pool = _place(name, network, found, readout, own)
    return PooledBlocks(network, [(index, pool)]), _placed(index, pool, len(found))


Blocks = list[tuple[torch.Tensor, torch.Tensor | None]]


def _all_blocks(network: nn.Module, side: int) -> Blocks:
    with torch.no_grad():
        return intermediates(network, _blank(network, side), None)


def _placed(index: int, pool: str, count: int) -> str:
    return f"{pool}, block {index} of 0 to {count - 1}"


def _place(name: str, network: nn.Module, found: Blocks, readout: Readout, own: str | None) -> tuple[int, str]:
    """Index and pooling of a block. Raises ConfigError if the network has no such block, or the block no such pooling.

    Args:
        found: outputs of all blocks.
    """
    assert readout.layer is not None
    count = len(found)
    index = readout.layer + count if readout.layer < 0 else readout.layer
    if not 0 <= index < count:
        raise ConfigError(f"backbone {name}", f"layer={readout.layer}", f"{-count} to {count - 1}")
    prefix = found[index][1]
    # open_clip's towers have no attribute cls_token, but always a class token
    has_class = prefix is not None and getattr(network, "cls_token", prefix) is not None
    pool = readout.pool or ("cls" if has_class and own in ("token", "tok") else "avg")
    allowed = ("cls", "avg", "max") if has_class else ("avg", "max")
    if pool not in allowed:
        raise ConfigError(f"backbone {name}", f"pool={pool} of block {index}", ", ".join(allowed))
    return index, pool


def several(name: str, first: Backbone, readouts: Mapping[str, Readout]) -> Backbone:
    """Return a backbone that concatenates blocks of one network, computed in one pass.

    Args:
        name: name of all of them.
        first: the backbone of the first block.
        readouts: readout of each block, by the name of its backbone, the first included. Only their layers differ.

    Raises:
        ConfigError: the network has no such block, a block is named twice, or the backbone is not a block.
    """
    module = first.module
    read = module.network if isinstance(module, Preprocessed) else None
    if not isinstance(module, Preprocessed) or not isinstance(read, PooledBlocks):
        raise ConfigError(f"backbone {name}", next(iter(readouts)), "blocks of a network")
    found = _all_blocks(read.network, first.spec.input_side)
    ((_, pool),) = read.places
    places = [_place(one, read.network, found, replace(at, pool=pool), None) for one, at in readouts.items()]
    if len(set(places)) < len(places):
        raise ConfigError(f"backbone {name}", ", ".join(str(index) for index, _ in places), "different layers")
    members = tuple(
        replace(first.spec, name=one, dim=int(found[index][0].shape[1]), pooling=_placed(index, pool, len(found)))
        for one, (index, pool) in zip(readouts, places, strict=True)
    )
    whole = copy(module)
    whole._modules = {"network": PooledBlocks(read.network, places)}
    spec = replace(first.spec, name=name, dim=sum(member.dim for member in members), pooling=f"{len(members)} blocks")
    return Backbone(spec, whole.eval(), members=members)


def _blank(network: nn.Module, side: int) -> torch.Tensor:
    return torch.zeros(1, 3, side, side, device=next(network.parameters()).device)
