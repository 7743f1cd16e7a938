"""Peak rates of GPUs, machines with their storage, and the shortest time of counted work on them.

A launch takes the longer of its compute and its memory time: the roofline of Williams, Waterman and Patterson (2009).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from substyle.errors import ConfigError


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        name: product name.
        flops: peak dense bf16 operations per second.
        float32: peak float32 operations per second outside of tensor cores; a fused multiply-add is two.
        bandwidth: peak memory bandwidth in bytes per second.
        memory: memory size in bytes.
        reached: fraction of peak operations that products are assumed to reach, and its source.
        moving: fraction of the bandwidth that kernels are assumed to reach.
        fp8: rate of fp8 products relative to bf16, 0.8 of the ratio of their peaks, as assumed; 0 if there are none.
    """

    name: str
    flops: float
    float32: float
    bandwidth: float
    memory: float
    reached: float
    source: str
    moving: float = 0.8
    fp8: float = 1.6

    def seconds(self, flop: float, moved: float, *, product: bool = True) -> float:
        """Seconds for operations, on tensor cores or in float32, and for bytes to and from memory."""
        peak = self.flops if product else self.float32
        return max(flop / (peak * self.reached), moved / (self.bandwidth * self.moving))


@dataclass(frozen=True)
class Cluster:
    """GPUs in machines, and the storage of photographs and embeddings.

    Attributes:
        gpus: their number; per_machine: how many of them a machine has.
        machine_rate: bytes per second that a machine reads and writes, on its disk or over its network.
        storage_rate: bytes per second of storage that all machines share; infinite: each has as much as it uses.
    """

    gpus: int = 1
    per_machine: int = 8
    machine_rate: float = 1e9
    storage_rate: float = math.inf

    @property
    def machines(self) -> int:
        """Number of machines."""
        return -(-self.gpus // self.per_machine)

    @property
    def alone(self) -> Cluster:
        """One of the machines: stages other than embedding run on one."""
        return replace(self, gpus=min(self.gpus, self.per_machine))

    @property
    def rate(self) -> float:
        """Bytes per second that all machines read and write."""
        return min(self.machines * self.machine_rate, self.storage_rate)


_WIDER = "assumed: less than an A100's 0.6 (AITemplate), with more operations per byte of bandwidth"
_AITEMPLATE = "published: AITemplate, ViT-B/16 in fp16, 5,273 images/s (59.5 %)"
# Source: NVIDIA's data sheets; dense rates, half of those "with sparsity"
DEVICES = {
    "h100": Device("H100 SXM", 989e12, 66.9e12, 3.35e12, 80e9, 0.45, _WIDER),
    "h200": Device("H200 SXM", 989e12, 66.9e12, 4.8e12, 141e9, 0.45, _WIDER),
    "a100": Device("A100 SXM 80GB", 312e12, 19.5e12, 2.039e12, 80e9, 0.6, _AITEMPLATE, fp8=0.0),
    "l4": Device("L4", 121e12, 30.3e12, 0.3e12, 24e9, 0.45, _WIDER),
}
DEFAULT = "h100"
CORES, MEMORY = 8, 128e9  # of a machine for each GPU, assumed: cores, bytes
GPU, HOST, STORAGE, DECODER = "GPU", "host", "storage", "JPEG decoder"
Busy = dict[str, float]  # seconds by resource; all are busy at the same time
Parts = dict[str, Busy]  # of a stage, by name; they follow one another


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


def slowest(busy: Mapping[str, float]) -> tuple[str, float]:
    """The resource that limits work, and its seconds."""
    return max(busy.items(), key=lambda item: item[1])
