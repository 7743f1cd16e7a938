"""Peak rates of GPUs, and the shortest time of counted work on them.

A launch takes the longer of its compute and its memory time: the roofline of Williams, Waterman and Patterson (2009).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from substyle.kernels.errors import ConfigError


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        name: product name.
        flops: peak dense bf16 operations per second.
        float32: peak float32 operations per second outside of tensor cores; a fused multiply-add is two.
        bandwidth: peak memory bandwidth in bytes per second.
        copies: bytes per second between host and device, in each direction.
        memory: memory size in bytes.
        reached: fraction of peak operations that products are assumed to reach, and its source.
    """

    name: str
    flops: float
    float32: float
    bandwidth: float
    copies: float
    memory: float
    reached: float
    source: str


_WIDER = (
    "assumed: less than an A100's 0.6 (AITemplate), with more operations per byte of bandwidth; an H100's 0.39 would "
    "be 11,000 ViT-B/16 images/s"
)
_AITEMPLATE = "published: AITemplate, ViT-B/16 in fp16, 5,273 images/s (59.5 %)"
# Source: NVIDIA's data sheets; dense rates, half of those "with sparsity"
DEVICES = {
    "h100": Device("H100 SXM", 989e12, 66.9e12, 3.35e12, 64e9, 80e9, 0.45, _WIDER),
    "h200": Device("H200 SXM", 989e12, 66.9e12, 4.8e12, 64e9, 141e9, 0.45, _WIDER),
    "a100": Device("A100 SXM 80GB", 312e12, 19.5e12, 2.039e12, 32e9, 80e9, 0.6, _AITEMPLATE),
    "l4": Device("L4", 121e12, 30.3e12, 0.3e12, 32e9, 24e9, 0.45, _WIDER),
}
DEFAULT = "h100"
# What work is limited by
TENSOR, FLOAT32, BANDWIDTH = UNITS = ("tensor cores", "float32 units", "memory bandwidth")
LAUNCHES, HOST, DISK, PCIE = "launches", "host thread", "disk", "PCIe"
Busy = dict[str, float]  # seconds by resource
DALI_RATE = 21_567  # photographs per second, see `Efficiency.decode_bytes`


SOURCES = {
    "bandwidth": "assumed: copies reach 0.9, other kernels somewhat less",
    "decode_bytes": "published: NVIDIA DALI's continuous integration, 21,567 photographs/s on an H100, 70 CPU threads",
    "launch": "measured: torch on one Xeon core, tiny tensors; a driver is assumed to take as long as their arithmetic",
    "replay": "assumed: a kernel in a CUDA graph, at least",
}
"""Sources of the fields of `Efficiency`; that of `compute` is `Device.source`."""


@dataclass(frozen=True)
class Efficiency:
    """Achieved fractions of a GPU's peak rates. Fields that may be None are set only if measured.

    Attributes:
        compute: fraction of `Device.flops`, or of `Device.float32`, in matrix products and convolutions.
        bandwidth: fraction of `Device.bandwidth`.
        decode_bytes: time of decoding a photograph, in bytes at full bandwidth: cards are assumed to scale with it.
            Fewer threads and photographs larger than ImageNet's are slower.
        launch, replay: seconds per kernel that the host launches, and that a CUDA graph does.
        backbones, styles, variants: fraction of the roofline that a stage reaches; replaces `compute` and `bandwidth`.
    """

    compute: float
    bandwidth: float = 0.8
    decode_bytes: float = 3.35e12 / DALI_RATE
    launch: float = 7e-6
    replay: float = 2e-6
    backbones: float | None = None
    styles: float | None = None
    variants: float | None = None

    def of(self, measured: float | None) -> Efficiency:
        """Return `measured` as the fraction of both compute and bandwidth, or self if it is None."""
        return self if measured is None else replace(self, compute=measured, bandwidth=measured)


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


@dataclass(frozen=True)
class Launch:
    """One kernel: operations (a multiply-add is two), bytes read and written, and whether it uses tensor cores."""

    flop: float
    moved: float
    product: bool = False


@dataclass
class Work:
    """Launches for a number of images. Operations, bytes and seconds are per image."""

    launches: list[Launch] = field(default_factory=list)
    images: int = 1

    @property
    def flop(self) -> float:
        """Operations."""
        return sum(launch.flop for launch in self.launches) / self.images

    @property
    def traffic(self) -> float:
        """Bytes to and from memory."""
        return sum(launch.moved for launch in self.launches) / self.images

    def busy(self, device: Device, efficiency: Efficiency) -> Busy:
        """Return the seconds on one GPU by what limits each launch: a unit of `UNITS`."""
        limited: Busy = {}
        for launch in self.launches:
            compute = launch.flop / ((device.flops if launch.product else device.float32) * efficiency.compute)
            memory = launch.moved / (device.bandwidth * efficiency.bandwidth)
            unit = BANDWIDTH if memory >= compute else TENSOR if launch.product else FLOAT32
            limited[unit] = limited.get(unit, 0.0) + max(compute, memory) / self.images
        return limited

    def times(self, device: Device, efficiency: Efficiency) -> tuple[float, float]:
        """Return the seconds on one GPU of launches limited by arithmetic, and of those limited by memory."""
        busy = self.busy(device, efficiency)
        memory = busy.pop(BANDWIDTH, 0.0)
        return sum(busy.values()), memory

    def seconds(self, device: Device, efficiency: Efficiency) -> float:
        """Return the seconds on one GPU."""
        return sum(self.times(device, efficiency))


def total(*weighted: tuple[float, Busy]) -> Busy:
    """Add seconds by resource, each times a factor."""
    found: Busy = {}
    for factor, busy in weighted:
        for resource, seconds in busy.items():
            found[resource] = found.get(resource, 0.0) + factor * seconds
    return found


def slowest(busy: Mapping[str, float]) -> tuple[str, float]:
    """The resource that limits work, and its seconds: the units of a GPU work in turn, other resources meanwhile."""
    gpu = sum(busy.get(unit, 0.0) for unit in UNITS)
    others = {resource: seconds for resource, seconds in busy.items() if resource not in UNITS}
    name = max(others, key=others.__getitem__, default="")
    if not others or gpu >= others[name]:
        return max(UNITS, key=lambda unit: busy.get(unit, 0.0)), gpu
    return name, others[name]
