"""`tokens:<grid>:<backbone>`: the tokens of a network, one after another, in place of its pooled embedding."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from substyle.engine.backbones import registry
from substyle.engine.backbones.export import Preprocessed
from substyle.engine.backbones.families.blocks import PooledBlocks, intermediates, last_map
from substyle.engine.backbones.family import Family, LoadContext, register_family
from substyle.engine.backbones.spec import Backbone
from substyle.errors import ConfigError

PREFIX = "tokens:"


class Tokens(nn.Module):
    """The tokens of a network's last map, after its final normalisation, or of the output of a block.

    Args:
        network: a network of timm, or one with its `forward_features`; a tower of OpenCLIP; or a pooled block.
        grid: side of the grid that patches are averaged to, 0 for all tokens.
    """

    def __init__(self, network: nn.Module, grid: int) -> None:
        super().__init__()
        self.network, self.grid = network, grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, side, side) float32 to (B, P · D), one token after another."""
        return tokens_of(*_map_of(self.network, x), self.grid).flatten(1)


def _map_of(network: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:  # noqa: ANN401
    """The map (B, D, H, W) that a network pools, and prefix tokens if the first is a class token."""
    if isinstance(network, PooledBlocks):
        ((index, _, branch),) = network.places
        if branch is not None:
            raise ValueError(f"its {branch} is read, not a block")
        return intermediates(network.network, x, [index])[0]
    return last_map(getattr(network, "trunk", network), x)  # of OpenCLIP's towers that are timm networks


def tokens_of(map_BDHW: torch.Tensor, prefix_BPD: torch.Tensor | None, grid: int) -> torch.Tensor:
    """The tokens of a map: the class token, if there is one, and all positions; or positions averaged to a grid.

    Args:
        prefix_BPD: prefix tokens that begin with a class token.
        grid: side g of the grid, at most H and W; cells are those of adaptive average pooling. 0 for all tokens.

    Returns:
        (B, P, D), positions row by row.
    """
    if grid:
        rows, columns = (_cells(side, grid, map_BDHW) for side in map_BDHW.shape[2:])
        return (rows @ map_BDHW @ columns.T).flatten(2).transpose(1, 2)
    patches = map_BDHW.flatten(2).transpose(1, 2)
    return patches if prefix_BPD is None else torch.cat([prefix_BPD[:, :1], patches], dim=1)


def _cells(side: int, grid: int, like: torch.Tensor) -> torch.Tensor:
    """Matrix (grid, side) of adaptive average pooling along one axis; not every exporter has the operation."""
    starts = [i * side // grid for i in range(grid)]
    ends = [-(-(i + 1) * side // grid) for i in range(grid)]
    rows = [[(a <= j < b) / (b - a) for j in range(side)] for a, b in zip(starts, ends, strict=True)]
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


def read_tokens(name: str, base: Backbone, grid: int) -> Backbone:
    """Return a backbone that outputs the tokens of a network.

    Raises:
        ConfigError: the network has no map of features, or a smaller one than the grid.
    """
    module, side = base.module, base.spec.input_side
    try:
        if not isinstance(module, Preprocessed):
            raise ValueError("it is no network of torch")
        with torch.no_grad():
            map_BDHW, prefix_BPD = _map_of(module.network, torch.zeros(1, 3, side, side))
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise ConfigError(f"backbone {name}", base.spec.name, f"a network with a map of features ({error})") from error
    least = min(map_BDHW.shape[2:])
    if grid > least:
        raise ConfigError("attentive.grid", grid, f"0 to {least}, the side of the map of {base.spec.name}")
    _, count, width = tokens_of(map_BDHW, prefix_BPD, grid).shape
    read = copy(module)
    read._modules = {"network": Tokens(module.network, grid)}
    pooling = f"{count} tokens" + f" of {grid} × {grid}" * bool(grid)
    spec = replace(base.spec, name=name, dim=count * width, pooling=pooling)
    return replace(base, spec=spec, module=read.eval())


def count_of(pooling: str) -> int:
    """Number of tokens P, from the pooling that `read_tokens` states."""
    return int(pooling.partition(" tokens")[0])


def parsed(name: str) -> tuple[int, str]:
    """Grid and backbone of a name. Raises ConfigError."""
    _, grid, base = (*name.split(":", 2), "", "")[:3]
    if not (grid.isdecimal() and base) or base.startswith(PREFIX):
        raise ConfigError("backbone", name, "tokens:<side of the grid, 0 for all tokens>:<backbone>")
    return int(grid), base


def _check(name: str, rest: str) -> None:
    del rest
    registry.check_name(parsed(name)[1])


def _load(name: str, rest: str, context: LoadContext) -> Backbone:
    del rest
    grid, base = parsed(name)
    return read_tokens(name, registry.load(base, context), grid)


def _identify(name: str, rest: str, context: LoadContext) -> dict[str, Any] | None:
    del rest
    grid, base = parsed(name)
    found = registry.identity(base, context)
    return None if found is None else {"grid": grid, "base": found}


register_family(
    Family(
        *("tokens", "<grid>:<backbone>", "the tokens of a backbone, for attentive probes"),
        *(_load, _identify),
        checkpoint=True,
        check=_check,
        position=8,
    )
)
