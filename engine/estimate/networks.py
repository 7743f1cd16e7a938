"""Work of backbones, counted on torch's meta device, where tensors have no memory."""

from __future__ import annotations

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
from substyle.engine.backbones.spec import expand, split, without_own_name
from substyle.engine.estimate.roofline import Device
from substyle.errors import ConfigError

# Bytes of a network per byte that its products read and write: what is between them (normalisation, activation,
# residual sums) is one pass more. Half of 0.8 of the bandwidth fits what timm publishes of dense and depthwise
# convolutions and of attention, compiled by torch: huggingface/pytorch-image-models aa4b5850,
# results/benchmark-infer-amp-nchw-*-dynamo.csv.
_MOVED = 2.0
_SIDE = 224  # of the canvas that a control computes on
# Bytes of a canvas that move while a control computes: each operation reads and writes its tensors
_CONTROLS = {"pixels": 1.66e6, "statistics": 16.1e6}


_LAYERS = torch.ops.aten.mm, torch.ops.aten.addmm  # products with weights; those of attention stay in 16 bits


@dataclass
class Work:
    """Operations (a multiply-add is two) and bytes of each product, per image, and whether fp8 computes it."""

    products: list[tuple[float, float, bool]] = field(default_factory=list)

    @property
    def flop(self) -> float:
        """Operations."""
        return sum(flop for flop, *_ in self.products)

    def seconds(self, device: Device, *, fp8: bool = False) -> float:
        """Return the seconds of an image on one GPU, in 16 bits, or with layers in fp8."""
        return sum(
            device.seconds(flop / device.fp8 if fp8 and eight else flop, moved) for flop, moved, eight in self.products
        )


class _Products(TorchDispatchMode):
    """Record matrix products and convolutions, which read and write 16 bits per number."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorded: list[tuple[float, float, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        out, operation = func(*args, **(kwargs or {})), func._overloadpacket
        if operation in flop_registry:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
            sizes = [2.0 * tensor.numel() for tensor in tensors]
            # the largest matrix of attention is its scores, which stay on chip
            on_chip = max(sizes) if operation in (torch.ops.aten.bmm, torch.ops.aten.baddbmm) else 0.0
            flop = float(flop_registry[operation](*args, **(kwargs or {}), out_val=out))
            self.recorded.append((flop, sum(sizes) - on_chip, operation in _LAYERS))
        return out


def of_network(network: nn.Module, x: torch.Tensor) -> Work:
    """Count the products of a network for a batch (B, C, H, W), on the device of ``x``.

    Concatenations, squeeze-and-excitation and convolutions in groups take longer than is counted: up to 2.4 times, by
    published rates.
    """
    with torch.no_grad(), _Products() as products:
        network(x)
    return Work([(flop / len(x), _MOVED * moved / len(x), eight) for flop, moved, eight in products.recorded])


@dataclass(frozen=True)
class NetworkFacts:
    """Embedding width D, number of parameters and work of a backbone."""

    dim: int
    parameters: int
    work: Work


def backbones(name: str, batch: int) -> dict[str, NetworkFacts]:
    """:func:`backbone` for each layer in a name; they are computed in one pass, which is counted for the deepest."""
    facts = {layer: backbone(layer, batch) for layer in expand(name)}
    deepest = max(facts, key=lambda layer: facts[layer].work.flop)
    return {layer: own if layer == deepest else NetworkFacts(own.dim, 0, Work()) for layer, own in facts.items()}


def backbone(name: str, batch: int) -> NetworkFacts:
    """Count the products of a backbone at its own input side, without loading weights.

    Raises:
        ConfigError: an invalid name, or a network that cannot be built or run without weights.
    """
    family, rest = check_name(name).prefix, without_own_name(name).partition(":")[2]
    if family == "control" and rest in _CONTROLS:
        return NetworkFacts(controls.load(name, rest, canvas=_SIDE).spec.dim, 0, Work([(0.0, _CONTROLS[rest], False)]))
    try:
        with torch.device("meta"):
            network, side = network_of(name)
            x = torch.empty(batch, 3, side, side)
        with torch.no_grad():
            dim = timm.require_vector(name, network(x[:1]))
    except (RuntimeError, KeyError, OSError) as error:  # meta tensors have no values; a repository lacks its files
        allowed = f"a backbone whose cost can be estimated without its weights ({error})"
        raise ConfigError(f"backbone {name}", rest, allowed) from error
    return NetworkFacts(dim, sum(p.numel() for p in network.parameters()), of_network(network, x))


def network_of(name: str) -> tuple[nn.Module, int]:
    """Build the network of a backbone without its weights, for inference; returns it and its input side."""
    family, rest = check_name(name).prefix, without_own_name(name).partition(":")[2]
    model, readout = split(name, rest)
    if known := PRESETS.get(f"{family}:{model}"):
        return preset.read_at(name, known, preset.network(known).eval(), readout).eval(), known.side
    if family == "open_clip":
        tower = open_clip_family.tower(open_clip_family.require_model(name, model)[0]).eval()
        size: Any = tower.image_size
        side = int(size if isinstance(size, int) else size[0])
        return open_clip_family.read_at(name, tower, readout, side)[0].eval(), side
    if family == "package":
        shipped = require_model(name, model)
        network, side = packaged.network(shipped), shipped.side
    elif family in ("control", "timm"):
        architecture = model.removeprefix("random:")
        timm.require_model(name, architecture)
        network = timm.create(architecture)
        side = timm.data_config(network)["side"]
    else:
        raise ConfigError(f"backbone {name}", family, "timm, open_clip, package, control or a preset")
    return timm.read_at(name, network.eval(), readout, side)[0].eval(), side
