"""Roofline estimates: operations and bytes of networks and variants, counted on meta tensors.

Assumptions: matrix products and convolutions read inputs and write outputs in bf16; everything between them
(normalisation, activation, residual sums) is fused and moves no data; attention scores stay on chip. Each product takes
the longer of its compute time and its memory time (Williams, Waterman, Patterson: Roofline, 2009).
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


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        name: product name.
        flops: peak dense bf16 operations per second.
        bandwidth: peak memory bandwidth in bytes per second.
        memory: memory size in bytes.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float


# Source: NVIDIA's data sheets; dense rates, half of those "with sparsity"
DEVICES = {
    "h100": Device("H100 SXM", 989e12, 3.35e12, 80e9),
    "h200": Device("H200 SXM", 989e12, 4.8e12, 141e9),
    "a100": Device("A100 SXM 80GB", 312e12, 2.039e12, 80e9),
    "l4": Device("L4", 121e12, 0.3e12, 24e9),
}
DEFAULT = "h100"


DALI_RATE = 21_567  # photographs per second, see `Efficiency.decode_bytes`


@dataclass(frozen=True)
class Efficiency:
    """Achieved fractions of a GPU's peak rates. Fields that may be None are set only if measured.

    Attributes:
        compute: fraction of `Device.flops` in matrix products and convolutions. AITemplate reaches 0.6 with ViT-B/16 in
            fp16 on an A100 (5,273 images/s, 59.5 %).
        bandwidth: fraction of `Device.bandwidth`. Copies reach 0.9, other kernels somewhat less.
        decode_bytes: cost of decoding, resizing and cropping a photograph, in bytes at full bandwidth. It is a rate
            converted to bytes, assuming that other cards scale with their bandwidth; no traffic was counted. NVIDIA
            DALI's continuous integration reaches 21,567 photographs/s on an H100 (nvJPEG and ResNet preprocessing, 70
            CPU threads), 155 MB each at 3.35 TB/s. Fewer threads and photographs larger than ImageNet's are slower.
        backbones: fraction of both peaks reached by whole networks; replaces `compute` and `bandwidth`.
        styles: same for style networks.
        variants: fraction of `Device.bandwidth` for the counted traffic of other variants; above 1 if several are
            computed from one read.
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
                raise ConfigError(f"efficiency.{name}", value, "a number above 0, at most 1")

    def of(self, measured: float | None) -> Efficiency:
        """Return `measured` as the fraction of both compute and bandwidth, or self if it is None."""
        return self if measured is None else Efficiency(compute=measured, bandwidth=measured)


FULL = Efficiency(compute=1.0, bandwidth=1.0)  # the roofline itself


def device(name: str) -> Device:
    """Return a GPU by its short name. Raises ConfigError for an unknown name."""
    if name not in DEVICES:
        raise ConfigError("--gpu", name, ", ".join(DEVICES))
    return DEVICES[name]


def card_of(name: str) -> str | None:
    """Convert a driver's device name to a short name, None if no entry of `DEVICES` matches.

    PCIe and NVL cards have lower peaks than the SXM modules in `DEVICES`.
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    if words & {"pcie", "nvl", "40gb", "mig"}:
        return None
    return next((short for short in DEVICES if short in words), None)


BYTES = 2  # per bf16 number


@dataclass
class Work:
    """Operations and memory traffic for a number of images.

    Attributes:
        products: (operations, bytes) of each matrix product or convolution; a multiply-add is two operations.
        images: number of images.
    """

    products: list[tuple[float, float]] = field(default_factory=list)
    images: int = 1

    @property
    def flop(self) -> float:
        """Operations per image."""
        return sum(flop for flop, _ in self.products) / self.images

    @property
    def traffic(self) -> float:
        """Bytes to and from memory per image."""
        return sum(moved for _, moved in self.products) / self.images

    def seconds(self, device: Device, efficiency: Efficiency) -> float:
        """Return the time per image on one GPU."""
        compute, bandwidth = device.flops * efficiency.compute, device.bandwidth * efficiency.bandwidth
        return sum(max(flop / compute, moved / bandwidth) for flop, moved in self.products) / self.images


def of_network(network: nn.Module, x: torch.Tensor) -> Work:
    """Count the work of a network for a batch (B, C, H, W). On the meta device nothing is computed."""
    with torch.no_grad(), _Counter() as counter:
        network(x)
    return Work(counter.products, len(x))


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[tuple[float, float]] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 (OpOverload)
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
            # batched products are those of attention; their largest matrix is its scores
            on_chip = max(sizes) if packet in (torch.ops.aten.bmm, torch.ops.aten.baddbmm) else 0
            self.products.append((flop, BYTES * float(sum(sizes) - on_chip)))
        return out


_STYLE_VECTOR = 100  # length of a style vector; its values do not affect the work


@dataclass(frozen=True)
class NetworkFacts:
    """Embedding width D, number of parameters and work of a backbone."""

    dim: int
    parameters: int
    work: Work


def backbone(name: str, batch: int) -> NetworkFacts:
    """Count the work of a backbone at its own input side, without loading weights.

    Raises:
        ConfigError: an invalid name, or a network that cannot be built or run without weights.
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
    except RuntimeError as error:  # the network reads values, which meta tensors do not have
        allowed = f"a backbone whose cost can be estimated without its weights ({error})"
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
        allowed = "timm, open_clip, package, control or a preset"
        raise ConfigError(f"backbone {name}", family, allowed)
    return timm_family.read_at(name, network.eval(), readout, side)[0], side


def _timm(name: str, model: str) -> tuple[nn.Module, int]:
    timm_family.require_model(name, model)
    network = timm_family.create(model)
    return network, int(timm_family.data_config(network)["side"])


def styles(names: tuple[str, ...], canvas: int) -> Work:
    """Count the work of the style networks of these transformations for one photograph.

    Layers before the first normalisation are shared by all styles of a network and counted once.
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
    """Add a generator's convolutions: strides 1, 2, 2, residual blocks at a quarter of the side, two upsamplings."""
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


def variant_bytes(transformations: Sequence[str], canvas: int) -> float:
    """Return the bytes moved by the variants of one photograph, without styles.

    A canvas is read and a variant written; both are read again to compare them.

    Args:
        transformations: names of transformations.
        canvas: side S in pixels.
    """
    load_all()
    plain = sum(base.get(name).made_by not in ("identity", "network") for name in transformations)
    return plain * 4.0 * canvas * canvas * 3
