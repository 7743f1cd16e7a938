"""Roofline estimates: operations and bytes of networks and variants, counted on meta tensors.

The model: matrix products and convolutions read their inputs and write their outputs in bf16; everything between them
(normalisation, activation, residual sums) is fused into them and moves nothing of its own; the scores of attention
never leave the chip. Each product takes the longer of its arithmetic and its traffic (Williams, Waterman, Patterson:
Roofline, 2009).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from substyle.engine.backbones.families import open_clip as open_clip_family
from substyle.engine.backbones.families import packaged, preset, timm
from substyle.engine.backbones.families import timm as timm_family
from substyle.engine.backbones.presets import PRESETS
from substyle.engine.backbones.registry import check_name
from substyle.engine.backbones.spec import split
from substyle.engine.style_transfer.graphs import Generator, Layer
from substyle.engine.style_transfer.networks import MULTISTYLE, arbitrary_generator, multistyle_generator
from substyle.kernels.errors import ConfigError
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all
from substyle.pipelines.transforms.style import MULTISTYLE as MULTISTYLE_NETWORK

# GPUs that a plan can be made for: peaks from their makers' data sheets, and how much of them work reaches.


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        name: as the maker calls it.
        flops: dense bf16 operations a second.
        bandwidth: bytes a second to its memory.
        memory: bytes of its memory.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float


# Source: NVIDIA's data sheets; dense numbers, half of those "with sparsity"
DEVICES = {
    "h100": Device("H100 SXM", 989e12, 3.35e12, 80e9),
    "h200": Device("H200 SXM", 989e12, 4.8e12, 141e9),
    "a100": Device("A100 SXM 80GB", 312e12, 2.039e12, 80e9),
    "l4": Device("L4", 121e12, 0.3e12, 24e9),
}
DEFAULT = "h100"


DALI_RATE = 21_567  # photographs a second, see `Efficiency.decode_bytes`


@dataclass(frozen=True)
class Efficiency:
    """How much of a GPU's peaks work reaches. Those that may be None are known where they were measured.

    Attributes:
        compute: of the operations a second in matrix products and convolutions. 0.6 is what AITemplate reaches with
            ViT-B/16 in fp16 on an A100 (5,273 images/s, 59.5 %).
        bandwidth: of the bytes a second to memory. Copies reach 0.9; kernels with more to do somewhat less.
        decode_bytes: a photograph's decoding, resize and crop, in bytes of the GPU's full bandwidth. No traffic was
            counted: it is a rate turned into bytes, so that other cards scale with their bandwidth, which is a guess.
            The rate is from NVIDIA DALI's continuous integration on an H100, nvJPEG and ResNet's preprocessing fed by
            70 CPU threads: 21,567 photographs a second, of 3.35 TB/s 155 MB each. Fewer threads, or larger
            photographs than ImageNet's, decode more slowly.
        backbones: of the roofline of whole networks, in place of the first two; a share of both peaks alike.
        styles: likewise of the style networks.
        variants: of the bytes a second, for the traffic that a plan counts for other variants; above 1 where several
            are made from one reading.
    """

    compute: float = 0.6
    bandwidth: float = 0.8
    decode_bytes: float = 3.35e12 / DALI_RATE
    backbones: float | None = None
    styles: float | None = None
    variants: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None and name in ("backbones", "styles", "variants"):
                continue
            if name in ("decode_bytes", "variants"):
                if not 0.0 < value < math.inf:
                    raise ConfigError(f"efficiency.{name}", value, "a number above 0")
            elif not 0.0 < value <= 1.0:
                raise ConfigError(f"efficiency.{name}", value, "a share above 0, at most 1")

    def of(self, measured: float | None) -> Efficiency:
        """For networks whose share of the roofline was measured, that share; else what is assumed."""
        return self if measured is None else Efficiency(compute=measured, bandwidth=measured)


FULL = Efficiency(compute=1.0, bandwidth=1.0)  # the roofline itself


def device(name: str) -> Device:
    """A GPU by its short name. Raises ConfigError naming those there are."""
    if name not in DEVICES:
        raise ConfigError("--gpu", name, ", ".join(DEVICES))
    return DEVICES[name]


def card_of(name: str) -> str | None:
    """The short name of a card by the name that its driver gives it; None where the data sheet is another's.

    PCIe and NVL cards have lower peaks than the SXM modules that the data sheets of `DEVICES` are of.
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    if words & {"pcie", "nvl", "40gb", "mig"}:
        return None
    return next((short for short in DEVICES if short in words), None)


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


# The work of a study's networks: backbones by name, without their weights, and style generators.

_STYLE_VECTOR = 100  # numbers that describe a style; which ones changes no size


@dataclass(frozen=True)
class NetworkFacts:
    """A backbone as a plan sees it: embedding width D, parameters, work."""

    dim: int
    parameters: int
    work: Work


def backbone(name: str, batch: int) -> NetworkFacts:
    """A backbone at its own input side.

    Raises:
        ConfigError: a bad name, or one of a family whose networks cannot be made without their weights.
    """
    family, rest = check_name(name).prefix, name.partition(":")[2]
    if rest in ("pixels", "statistics") and family == "control":
        from substyle.engine.backbones.families import controls

        spec = controls.load(name, rest, canvas=224).spec
        return NetworkFacts(spec.dim, 0, Work())
    try:
        with torch.device("meta"):
            network, side = _network(name, family, rest)
            x = torch.empty(batch, 3, side, side)
        network = network.eval()
        with torch.no_grad():
            dim = timm.require_vector(name, network(x[:1]))
    except RuntimeError as error:  # a network that looks at its numbers, of which there are none here
        allowed = f"one whose work can be counted without its weights ({error})"
        raise ConfigError(f"backbone {name}", rest, allowed) from error
    return NetworkFacts(dim, sum(p.numel() for p in network.parameters()), of_network(network, x))


def _network(name: str, family: str, rest: str) -> tuple[nn.Module, int]:
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
        row = packaged.require_model(name, model)
        network, side = packaged.network(row), row.side
    elif family in ("control", "timm"):
        network, side = _timm(name, model.partition(":")[2] if family == "control" else model)
    else:
        allowed = "timm, open_clip, package, control or a preset, whose work can be counted"
        raise ConfigError(f"backbone {name}", family, allowed)
    return timm_family.read_at(name, network.eval(), readout, side)[0], side


def _timm(name: str, model: str) -> tuple[nn.Module, int]:
    timm_family.require_model(name, model)
    network = timm_family.create(model)
    return network, int(timm_family.data_config(network)["side"])


def styles(names: tuple[str, ...], canvas: int) -> Work:
    """The work of the style networks that these transformations need, for one photograph.

    Layers before the first normalisation are the same in all styles of a network and are counted once.
    """
    load_all()
    work = Work()
    wanted = [base.get(name) for name in names if base.get(name).made_by == "network"]
    of_multistyle = [t.name for t in wanted if t.network == MULTISTYLE_NETWORK]
    if of_multistyle:
        _add_generator(work, multistyle_generator([MULTISTYLE[n] for n in of_multistyle]), len(of_multistyle), canvas)
    if len(of_multistyle) < len(wanted):
        _add_generator(work, arbitrary_generator(np.zeros(_STYLE_VECTOR, np.float32)), 1, canvas)
    return work


def _add_generator(work: Work, generator: Generator, styles: int, side: int) -> None:
    """Convolutions of a generator: stride 1, 2, 2, the residual blocks at a quarter of the side, then twice doubled."""
    seen_styled = False

    def convolution(layer: Layer, into: int, out: int) -> None:
        nonlocal seen_styled
        outputs, inputs, height, width = layer.weight.shape
        flop = 2.0 * outputs * inputs * height * width * out * out
        moved = float(BYTES * (inputs * into * into + outputs * out * out + layer.weight.size))
        times = styles if seen_styled else 1
        work.products.extend([(flop, moved)] * times)
        seen_styled = seen_styled or layer.scale is not None

    half, quarter = side // 2, side // 4
    for layer, into, out in zip(generator.contract, (side, side, half), (side, half, quarter), strict=True):
        convolution(layer, into, out)
    for pair in generator.residual:
        for layer in pair:
            convolution(layer, quarter, quarter)
    for layer, into, out in zip(generator.expand, (quarter, half, side), (half, side, side), strict=True):
        convolution(layer, into, out)


# The traffic of variants that no network makes.


def variant_bytes(transformations: Sequence[str], canvas: int) -> float:
    """Bytes that the variants of one photograph move, styles left out: a canvas is read and a variant written.

    Both are read once more to see whether they differ.

    Args:
        transformations: names.
        canvas: side S in pixels.
    """
    load_all()
    plain = sum(base.get(name).made_by not in ("identity", "network") for name in transformations)
    return plain * 4.0 * canvas * canvas * 3
