"""x"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from substyle.engine import target
from substyle.engine.precision import AUTO, Precision, check_precision
from substyle.engine.store.layout import DTYPES
from substyle.engine.target import graph_batch
from substyle.kernels.errors import ConfigError

BATCH, GPU_BATCH = 32, 256  # of images, where no batch is given


_BEHIND = 2  # executions that wait on a stream behind the one that runs, so that it never waits for the host


@dataclass(frozen=True)
class EmbedConfig:
    """How embeddings are computed.

    Attributes:
        batch: images in one run of a network; left out: 32 on a CPU, 256 on a GPU.
        threads: CPU threads; 0 takes all there are.
        device: where photographs are decoded, varied and embedded: cpu, cuda or cuda:N; auto, which is the first GPU
            that torch sees, else the CPU.
        runtime: of compiled backbones: openvino or torch on a CPU, tensorrt or torch on a GPU; auto, which is the first
            of these that is installed.
        precision: arithmetic of compiled backbones: bf16, fp16, fp32; auto, which in OpenVINO is bf16 with as many of a
            backbone's first layers in float32 as its gate asks for, elsewhere the first of bf16, fp16, fp32 that
            passes it; or int8 (OpenVINO, TensorRT) or fp8 (TensorRT), quantised on photographs of the source.
        dtype: type of stored embeddings: float16 or float32.
        shard_rows: R, images in a unit of work, a power of two; 0 chooses one that takes under two minutes.
    """

    batch: int | None = None
    threads: int = 0
    device: str = AUTO
    runtime: str = AUTO
    precision: str = AUTO
    dtype: str = "float16"
    shard_rows: int = 0

    def __post_init__(self) -> None:
        if self.batch is not None and not 1 <= self.batch <= 4096:
            raise ConfigError("embed.batch", self.batch, "1 to 4096")
        if self.threads < 0:
            raise ConfigError("embed.threads", self.threads, "0 (all) or more")
        check_precision("embed.precision", self.precision)
        target.check(self.device, self.runtime, "embed.")
        target.require_precision(self.runtime, "embed.precision", self.precision)
        if self.dtype not in DTYPES:
            raise ConfigError("embed.dtype", self.dtype, ", ".join(DTYPES))
        if self.shard_rows < 0 or self.shard_rows & (self.shard_rows - 1):
            raise ConfigError("embed.shard_rows", self.shard_rows, "0 (chosen) or a power of two")

    @property
    def cores(self) -> int:
        """Threads to use: as given, else the CPUs this process may run on."""
        return self.threads or len(os.sched_getaffinity(0))

    def here(self, shard_rows: int = 0) -> EmbedConfig:
        """The same with device and runtime as this machine has them. Raises ConfigError where it has not got them.

        Args:
            shard_rows: R of the store where there is one. Batches begin at shards: on a GPU, whose graphs take whole
                batches, a batch that is not given is no larger than a shard.
        """
        found = target.resolve(self.device, self.runtime, "embed.")
        found.require_precision("embed.precision", self.precision)
        here = replace(self, device=found.device, runtime=found.runtime)
        rows = shard_rows or self.shard_rows
        return replace(here, batch=rows) if self.batch is None and here.on_gpu and 0 < rows < here.images else here

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU; auto is none before `here` has looked."""
        return self.device.startswith("cuda")

    @property
    def images(self) -> int:
        """B: images in one run of a network."""
        return self.batch or (GPU_BATCH if self.on_gpu else BATCH)

    @property
    def graph_images(self) -> int:
        """Images in one execution of a compiled graph."""
        return graph_batch(self.images, on_gpu=self.on_gpu)

    @property
    def begun(self) -> int:
        """Batches that a backbone is given before the first has ended: a GPU has one stream, a CPU one a core."""
        streams = 1 if self.on_gpu else self.cores
        return 1 + _BEHIND * streams * self.graph_images // self.images


@dataclass(frozen=True)
class Settings:
    """What images and variants depend on.

    Attributes:
        seed: of variants and splits.
        canvas: canvas side S in pixels.
        transformations: names in suite order.
        orientation: what is done with EXIF orientations: ``ignore`` them, as timm and open_clip do, or ``apply`` them.
        style_precision: arithmetic inside style networks.
    """

    seed: int
    canvas: int
    transformations: tuple[str, ...]
    orientation: str = "ignore"
    style_precision: Precision = "bf16"


@dataclass(frozen=True)
class BackboneChoice:
    """A backbone as the user asks for it: a name, and where its weights or precision differ from the default."""

    name: str
    checkpoint: Path | None = None
    precision: str | None = None
