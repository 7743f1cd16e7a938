"""GPUs that a plan can be made for: peaks from their makers' data sheets, and how much of them work reaches."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from substyle.kernels.errors import ConfigError


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
