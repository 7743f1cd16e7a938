"""Reading a timm or OpenCLIP network elsewhere than at its usual end: a block's output, another pooling."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from substyle.engine.backbones.readout import Readout
from substyle.kernels.errors import ConfigError

# as timm calls them
_POOLS = {"cls": "token", "avg": "avg", "max": "max", "map": "map", "none": ""}
_REFUSED = (AssertionError, NotImplementedError, TypeError, ValueError)  # how timm's networks say that they cannot


class Block(nn.Module):
    """The output of one block, pooled.

    Args:
        network: has `forward_intermediates`, as timm's and OpenCLIP's networks have.
        index: number of the block from 0.
        pool: ``cls``, ``avg`` or ``max``.
    """

    def __init__(self, network: nn.Module, index: int, pool: str) -> None:
        super().__init__()
        self.network, self.index, self.pool = network, index, pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, side, side) float32 to (B, D)."""
        map_BDHW, prefix_BPD = intermediates(self.network, x, [self.index])[0]
        if self.pool == "cls":
            assert prefix_BPD is not None
            return prefix_BPD[:, 0]
        return map_BDHW.mean((2, 3)) if self.pool == "avg" else map_BDHW.amax((2, 3))


def intermediates(
    network: nn.Module, x: torch.Tensor, indices: list[int] | None
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Outputs of blocks, all for None: maps (B, D, H, W), and the tokens before the patches (B, P, D) where there are.

    Blocks after the last one asked for are not computed.
    """
    call: Any = network.forward_intermediates
    options: dict[str, Any] = {"indices": indices, "stop_early": True, "intermediates_only": True}
    known = inspect.signature(call).parameters
    for tokens in ("return_prefix_tokens", "output_extra_tokens"):
        # timm's relative-position ViTs give an error instead of no tokens
        if tokens in known and getattr(network, "num_prefix_tokens", None) != 0:
            options[tokens] = True
    found = call(x, **options)
    if isinstance(found, dict):  # OpenCLIP
        maps = found["image_intermediates"]
        return list(zip(maps, found.get("image_intermediates_prefix", [None] * len(maps)), strict=True))
    return [each if isinstance(each, tuple) else (each, None) for each in found]


def block(name: str, network: nn.Module, readout: Readout, *, side: int, own: str | None) -> tuple[nn.Module, str]:
    """The network read at a block, and its pooling in words.

    Args:
        name: of the backbone, for errors.
        network: on any device, the meta device too.
        readout: its layer is not None.
        side: input side.
        own: the network's own pooling in timm's words.

    Raises:
        ConfigError: no such block, or a pooling that its output has not got.
    """
    assert readout.layer is not None
    if readout.head == "projection":
        raise ConfigError(f"backbone {name}", f"head=projection of block {readout.layer}", "a head at the end only")
    if not hasattr(network, "forward_intermediates"):
        raise ConfigError(f"backbone {name}", f"layer={readout.layer}", "a network whose library gives its blocks")
    with torch.no_grad():
        found = intermediates(network, _blank(network, side), None)
    count = len(found)
    index = readout.layer + count if readout.layer < 0 else readout.layer
    if not 0 <= index < count:
        raise ConfigError(f"backbone {name}", f"layer={readout.layer}", f"{-count} to {count - 1}")
    prefix = found[index][1]
    # of timm's networks; open_clip's towers, which have no such attribute, always have one before the patches
    has_class = prefix is not None and getattr(network, "cls_token", prefix) is not None
    pool = readout.pool or ("cls" if has_class and own in ("token", "tok") else "avg")
    allowed = ("cls", "avg", "max") if has_class else ("avg", "max")
    if pool not in allowed:
        raise ConfigError(f"backbone {name}", f"pool={pool} of block {index}", ", ".join(allowed))
    return Block(network, index, pool), f"{pool}, block {index} of 0 to {count - 1}"


def pooled(name: str, network: nn.Module, pool: str) -> None:
    """Give a timm network another pooling at its end, in place: the same weights, the final normalisation as it is.

    Raises:
        ConfigError: the network has no such pooling.
    """
    fits = {
        "cls": getattr(network, "cls_token", None) is not None,
        "map": getattr(network, "attn_pool", None) is not None,
    }
    allowed = "a pooling that the network has: avg, max" + "".join(f", {key}" for key, has in fits.items() if has)
    if not fits.get(pool, True) or not hasattr(network, "reset_classifier"):
        raise ConfigError(f"backbone {name}", f"pool={pool}", allowed)
    try:
        network.reset_classifier(0, _POOLS[pool])  # type: ignore[operator]
    except _REFUSED as error:
        raise ConfigError(f"backbone {name}", f"pool={pool}", f"{allowed} ({error})") from error


def require_vector(name: str, output: torch.Tensor) -> int:
    """The embedding's width D. Raises ConfigError where a network does not give one vector (B, D) an image."""
    if output.ndim != 2:
        shape = " × ".join(str(n) for n in output.shape[1:])
        raise ConfigError(f"backbone {name}", f"{shape} numbers an image", "one vector an image: cls, avg or max")
    return int(output.shape[1])


def _blank(network: nn.Module, side: int) -> torch.Tensor:
    return torch.zeros(1, 3, side, side, device=next(network.parameters()).device)
