"""Layers of a network: the pooled output of one block, or of several in one pass."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from substyle.engine.backbones.export import Preprocessed
from substyle.engine.backbones.spec import Backbone, Readout
from substyle.errors import ConfigError

Block = tuple[torch.Tensor, torch.Tensor | None]
Place = tuple[int, str, str | None]
# of every block of a ViT: modules whose outputs are added to the residual stream, after layer scale
_BRANCHES = (
    {"attention": "drop_path1", "ffn": "drop_path2"},  # timm
    {"attention": "ls_1", "ffn": "ls_2"},  # OpenCLIP
)


class _Kept:
    """A forward hook that keeps the last output of a module. An object, so that copies of a network keep their own."""

    out: torch.Tensor | None = None

    def __call__(self, module: nn.Module, inputs: object, out: torch.Tensor) -> None:
        self.out = out

    def pop(self) -> torch.Tensor:
        """Return the output and release it."""
        out, self.out = self.out, None
        assert out is not None
        return out


def _stack(network: Any) -> Sequence[nn.Module]:  # noqa: ANN401
    """The blocks of a ViT; empty for other networks, such as hierarchical ones."""
    if hasattr(network, "num_prefix_tokens"):  # timm
        return getattr(network, "blocks", ())
    return getattr(getattr(network, "transformer", None), "resblocks", ())


def _branch(network: Any, index: int, branch: str) -> nn.Module | None:  # noqa: ANN401
    """The module whose output is a branch of a block; None if the network has no such branches."""
    stack = _stack(network)
    for names in _BRANCHES:
        if index < len(stack) and all(hasattr(block, each) for block in stack for each in names.values()):
            found: nn.Module = getattr(stack[index], names[branch])
            return found
    return None


class PooledBlocks(nn.Module):
    """The outputs of blocks or of their branches, pooled and concatenated.

    Args:
        network: a network with `forward_intermediates`, as in timm and OpenCLIP.
        places: of each output the index of the block, the pooling (``cls``, ``avg`` or ``max``) and the
            branch: ``attention``, ``ffn`` or None for the block.
    """

    def __init__(self, network: nn.Module, places: Sequence[Place]) -> None:
        super().__init__()
        self.network, self.places = network, tuple(places)
        self.kept: dict[tuple[int, str], _Kept] = {}
        for index, _, branch in self.places:
            if branch is not None:
                self.kept[index, branch] = self._hook(index, branch)

    def _hook(self, index: int, branch: str) -> _Kept:
        """The hook on a branch, registered once for all readers of the network."""
        module = _branch(self.network, index, branch)
        assert module is not None
        hooks = [hook for hook in module._forward_hooks.values() if isinstance(hook, _Kept)] or [_Kept()]
        if hooks[0] not in module._forward_hooks.values():
            module.register_forward_hook(hooks[0])
        return hooks[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, side, side) float32 to (B, D), D being the sum over places."""
        indices = sorted({index for index, _, _ in self.places})
        found: dict[tuple[int, str | None], Block] = {
            (index, None): each for index, each in zip(indices, intermediates(self.network, x, indices), strict=True)
        }
        for (index, branch), kept in self.kept.items():
            found[index, branch] = _as_block(kept.pop(), *found[index, None])
        outputs = [pooled(*found[index, branch], pool) for index, pool, branch in self.places]
        return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


def _as_block(tokens_BPD: torch.Tensor, map_BDHW: torch.Tensor, prefix_BPD: torch.Tensor | None) -> Block:
    """The output of a branch as a map and prefix tokens, like the output of its block."""
    first = tokens_BPD.shape[1] - math.prod(map_BDHW.shape[2:])
    branch_BDHW = tokens_BPD[:, first:].transpose(1, 2).reshape(map_BDHW.shape)
    return branch_BDHW, None if prefix_BPD is None else tokens_BPD[:, :first]


def pooled(map_BDHW: torch.Tensor, prefix_BPD: torch.Tensor | None, pool: str) -> torch.Tensor:
    """A map (B, D, H, W) pooled by ``cls``, ``avg`` or ``max``. Shape: (B, D)."""
    if pool == "cls":
        assert prefix_BPD is not None
        return prefix_BPD[:, 0]
    return map_BDHW.mean((2, 3)) if pool == "avg" else map_BDHW.amax((2, 3))


def last_map(network: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:  # noqa: ANN401
    """The last map (B, D, H, W) of a network, and prefix tokens if the first is a class token.

    Raises ValueError if there is no such map.
    """
    if not hasattr(network, "forward_features"):
        ((found, prefix),) = intermediates(network, x, [-1], normalised=True)
        return found, prefix
    out = network.forward_features(x)
    if not isinstance(out, torch.Tensor) or out.ndim not in (3, 4):
        raise ValueError("its features are not a map")
    if out.ndim == 4:
        width = getattr(network, "num_features", out.shape[1])
        last = str(getattr(network, "output_fmt", "")) == "NHWC" or (out.shape[1] != width and out.shape[3] == width)
        return out.permute(0, 3, 1, 2) if last else out, None
    first = int(getattr(network, "num_prefix_tokens", 0))
    side = math.isqrt(out.shape[1] - first)
    if side * side != out.shape[1] - first:
        raise ValueError(f"its {out.shape[1] - first} patches are not a square")
    patches = out[:, first:].transpose(1, 2)
    has_class = first and getattr(network, "cls_token", None) is not None
    return patches.reshape(*patches.shape[:2], side, side), out[:, :first] if has_class else None


def intermediates(
    network: nn.Module, x: torch.Tensor, indices: list[int] | None, *, normalised: bool = False
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Compute the outputs of blocks, or all blocks for None.

    Blocks after the last index are not computed.

    Args:
        normalised: whether to apply the final normalisation, in OpenCLIP.

    Returns:
        of each block the map (B, D, H, W), and prefix tokens (B, P, D) if the first is a class token.
    """
    call: Any = network.forward_intermediates
    options: dict[str, Any] = {"indices": indices, "stop_early": True, "intermediates_only": True}
    known = inspect.signature(call).parameters
    if normalised and "normalize_intermediates" in known:
        options["normalize_intermediates"] = True
    for tokens in ("return_prefix_tokens", "output_extra_tokens"):
        # timm's relative-position ViTs raise instead of returning no tokens
        if tokens in known and getattr(network, "num_prefix_tokens", None) != 0:
            options[tokens] = True
    found = call(x, **options)
    if isinstance(found, dict):  # OpenCLIP
        maps = found["image_intermediates"]
        return list(zip(maps, found.get("image_intermediates_prefix", [None] * len(maps)), strict=True))
    pairs = [each if isinstance(each, tuple) else (each, None) for each in found]
    return pairs if getattr(network, "cls_token", None) is not None else [(each, None) for each, _ in pairs]


def maps_of(
    blocks: nn.Sequential | nn.ModuleList, x: torch.Tensor, indices: Sequence[int] | None
) -> list[torch.Tensor]:
    """Outputs of these blocks, which run one after another, or of all for None; those after the last do not run."""
    wanted = range(len(blocks)) if indices is None else [index % len(blocks) for index in indices]
    found = []
    for number in range(max(wanted) + 1):
        x = blocks[number](x)
        found.append(x)
    return [found[number] for number in wanted]


def block(name: str, network: nn.Module, readout: Readout, *, side: int, own: str | None) -> tuple[nn.Module, str]:
    """Return a network that outputs a pooled block, and a description of the pooling.

    Args:
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
    place = _place(name, network, found, readout, own)
    return PooledBlocks(network, [place]), _placed(place, len(found))


def _all_blocks(network: nn.Module, side: int) -> list[Block]:
    with torch.no_grad():
        return intermediates(network, _blank(network, side), None)


def _placed(place: Place, depth: int) -> str:
    index, pool, branch = place
    return f"{pool}, {f'{branch} of ' if branch else ''}block {index} of 0 to {depth - 1}"


def _place(name: str, network: nn.Module, found: list[Block], readout: Readout, own: str | None) -> Place:
    """Index, pooling and branch of a block. Raises ConfigError if the network has no such block, or the block no such
    pooling or branch.

    Args:
        found: outputs of all blocks.
    """
    assert readout.layer is not None
    count = len(found)
    index = readout.layer + count if readout.layer < 0 else readout.layer
    if not 0 <= index < count:
        raise ConfigError(f"backbone {name}", f"layer={readout.layer}", f"{-count} to {count - 1}")
    has_class = found[index][1] is not None
    pool = readout.pool or ("cls" if has_class and own in ("token", "tok") else "avg")
    allowed = ("cls", "avg", "max") if has_class else ("avg", "max")
    if pool not in allowed:
        raise ConfigError(f"backbone {name}", f"pool={pool} of block {index}", ", ".join(allowed))
    if readout.module is not None and (
        len(_stack(network)) != count or _branch(network, index, readout.module) is None
    ):
        modules = "block; only ViTs of timm and OpenCLIP whose blocks have two branches in sequence have others"
        raise ConfigError(f"backbone {name}", f"module={readout.module}", modules)
    return index, pool, readout.module


def several(name: str, first: Backbone, readouts: Mapping[str, Readout]) -> Backbone:
    """Return a backbone that concatenates blocks of one network, computed in one pass.

    Args:
        name: name of all of them.
        first: the backbone of the first block.
        readouts: readout of each block, by the name of its backbone, the first included. Only their layers and modules
            differ.

    Raises:
        ConfigError: the network has no such block, a block is named twice, or the backbone is not a block.
    """
    module = first.module
    read = module.network if isinstance(module, Preprocessed) else None
    if not isinstance(module, Preprocessed) or not isinstance(read, PooledBlocks):
        raise ConfigError(f"backbone {name}", next(iter(readouts)), "blocks of a network")
    found = _all_blocks(read.network, first.spec.input_side)
    ((_, pool, _),) = read.places
    places = [_place(one, read.network, found, replace(at, pool=pool), None) for one, at in readouts.items()]
    if len(set(places)) < len(places):
        raise ConfigError(f"backbone {name}", ", ".join(str(index) for index, *_ in places), "different layers")
    members = []
    for one, place in zip(readouts, places, strict=True):
        dim = pooled(*found[place[0]], pool).shape[1]
        members.append(replace(first.spec, name=one, dim=dim, pooling=_placed(place, len(found))))
    whole = copy(module)
    whole._modules = {"network": PooledBlocks(read.network, places)}
    dim, pooling = sum(member.dim for member in members), f"{len(members)} blocks"
    spec = replace(first.spec, name=name, dim=dim, pooling=pooling)
    return Backbone(spec, whole.eval(), members=tuple(members))


def _blank(network: nn.Module, side: int) -> torch.Tensor:
    return torch.zeros(1, 3, side, side, device=next(network.parameters()).device)
