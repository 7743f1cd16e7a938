"""Work of backbones, counted on torch's meta device, where tensors have no memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from substyle.engine.backbones.families import controls, packaged, preset, timm
from substyle.engine.backbones.families import open_clip as open_clip_family
from substyle.engine.backbones.packages import require_model
from substyle.engine.backbones.presets import PRESETS
from substyle.engine.backbones.registry import check_name
from substyle.engine.backbones.spec import expand, split
from substyle.engine.estimate.roofline import Device
from substyle.kernels.errors import ConfigError

META = torch.device("meta")
_SIDE = 224  # of the canvas that a control computes on
# Bytes of a canvas that move while a control computes: each operation reads and writes its tensors
_CONTROLS = {"pixels": 1.66e6, "statistics": 16.1e6}


@dataclass
class Work:
    """Operations (a multiply-add is two) and bytes of each product, for a number of images. Sums are per image."""

    products: list[tuple[float, float]] = field(default_factory=list)
    images: int = 1

    @property
    def flop(self) -> float:
        """Operations."""
        return sum(flop for flop, _ in self.products) / self.images

    def seconds(self, device: Device) -> float:
        """Return the seconds on one GPU."""
        return sum(device.seconds(flop, moved) for flop, moved in self.products) / self.images


class _Products(TorchDispatchMode):
    """Record matrix products and convolutions, which read and write 16 bits per number."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[tuple[float, float]] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 (OpOverload)
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        out, packet = func(*args, **(kwargs or {})), func._overloadpacket
        if packet in flop_registry:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
            sizes = [2.0 * tensor.numel() for tensor in tensors]
            # the largest matrix of attention is its scores, which stay on chip
            on_chip = max(sizes) if packet in (torch.ops.aten.bmm, torch.ops.aten.baddbmm) else 0.0
            self.found.append(
                (float(flop_registry[packet](*args, **(kwargs or {}), out_val=out)), sum(sizes) - on_chip)
            )
        return out


def of_network(network: nn.Module, x: torch.Tensor) -> Work:
    """Count the products of a network for a batch (B, C, H, W), on the device of ``x``.

    What is between them (normalisation, activation, residual sums) is fused and moves no data, as in TensorRT.
    """
    with torch.no_grad(), _Products() as products:
        network(x)
    return Work(products.found, len(x))


@dataclass(frozen=True)
class NetworkFacts:
    """Embedding width D, number of parameters and work of a backbone."""

    dim: int
    parameters: int
    work: Work


def backbones(name: str, batch: int) -> dict[str, NetworkFacts]:
    """:func:`backbone` for each layer in a name; they are computed in one pass, which is counted for the deepest."""
    found = {each: backbone(each, batch) for each in expand(name)}
    deepest = max(found.values(), key=lambda facts: facts.work.flop)
    alone = {each: NetworkFacts(facts.dim, 0, Work()) for each, facts in found.items()}
    return {each: facts if facts is deepest else alone[each] for each, facts in found.items()}


def backbone(name: str, batch: int) -> NetworkFacts:
    """Count the products of a backbone at its own input side, without loading weights.

    Raises:
        ConfigError: an invalid name, or a network that cannot be built or run without weights.
    """
    family, rest = check_name(name).prefix, name.partition(":")[2]
    if family == "control" and rest in _CONTROLS:
        return NetworkFacts(controls.load(name, rest, canvas=_SIDE).spec.dim, 0, Work([(0.0, _CONTROLS[rest])]))
    try:
        with torch.device("meta"):
            network, side = network_of(name)
            x = torch.empty(batch, 3, side, side)
        network = network.eval()
        with torch.no_grad():
            dim = timm.require_vector(name, network(x[:1]))
    except (RuntimeError, KeyError, OSError) as error:  # meta tensors have no values; a repository lacks its files
        allowed = f"a backbone whose cost can be estimated without its weights ({error})"
        raise ConfigError(f"backbone {name}", rest, allowed) from error
    parameters = sum(p.numel() for p in network.parameters())
    return NetworkFacts(dim, parameters, of_network(network, x))


def network_of(name: str) -> tuple[nn.Module, int]:
    """Build the network of a backbone without its weights; returns it and its input side."""
    family, rest = check_name(name).prefix, name.partition(":")[2]
    model, readout = split(name, rest)
    known = PRESETS.get(f"{family}:{model}")
    if known is not None:
        return preset.read_at(name, known, preset.network(known).eval(), readout), known.side
    if family == "open_clip":
        architecture, _ = open_clip_family.require_model(name, model)
        tower = open_clip_family.tower(architecture).eval()
        size: Any = tower.image_size
        side = int(size if isinstance(size, int) else size[0])
        return open_clip_family.read_at(name, tower, readout, side)[0], side
    if family == "package":
        row = require_model(name, model)
        network, side = packaged.network(row), row.side
    elif family in ("control", "timm"):
        architecture = model.partition(":")[2] if family == "control" else model
        timm.require_model(name, architecture)
        network = timm.create(architecture)
        side = int(timm.data_config(network)["side"])
    else:
        raise ConfigError(f"backbone {name}", family, "timm, open_clip, package, control or a preset")
    return timm.read_at(name, network.eval(), readout, side)[0], side
