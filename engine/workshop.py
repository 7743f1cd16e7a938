"""Settings of a run, and its tools: decoder, style networks, variant makers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from substyle.engine.precision import AUTO, Precision, check_precision
from substyle.engine.store.layout import DTYPES
from substyle.kernels.errors import ConfigError
from substyle.pipelines.decode import Decoder
from substyle.pipelines.plugins import load_all
from substyle.pipelines.variants import VariantMaker

STYLE_BLOBS = "styles"  # folder in the cache


@dataclass(frozen=True)
class EmbedConfig:
    """How embeddings are computed.

    Attributes:
        batch: images in one run of a network.
        threads: CPU threads; 0 takes all there are.
        precision: arithmetic of compiled backbones: bf16, fp16, fp32; auto, which is bf16 with as many of a
            backbone's first layers in float32 as its gate asks for; or int8, quantised on photographs of the source.
        dtype: type of stored embeddings: float16 or float32.
        shard_rows: R, images in a unit of work, a power of two; 0 chooses one that takes under two minutes.
    """

    batch: int = 32
    threads: int = 0
    precision: str = AUTO
    dtype: str = "float16"
    shard_rows: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 4096:
            raise ConfigError("embed.batch", self.batch, "1 to 4096")
        if self.threads < 0:
            raise ConfigError("embed.threads", self.threads, "0 (all) or more")
        check_precision("embed.precision", self.precision)
        if self.dtype not in DTYPES:
            raise ConfigError("embed.dtype", self.dtype, ", ".join(DTYPES))
        if self.shard_rows < 0 or self.shard_rows & (self.shard_rows - 1):
            raise ConfigError("embed.shard_rows", self.shard_rows, "0 (chosen) or a power of two")

    @property
    def cores(self) -> int:
        """Threads to use: as given, else the CPUs this process may run on."""
        return self.threads or len(os.sched_getaffinity(0))


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


class Workshop:
    """The tools of one run, each made once: decoder, style networks, variant makers."""

    def __init__(self, settings: Settings, config: EmbedConfig) -> None:
        torch.set_num_threads(config.cores)
        load_all()
        self.settings, self.config = settings, config
        self.decoder = Decoder(settings.canvas, config.batch, config.cores, orientation=settings.orientation)
        self._maker = cache(self._make)

    def maker(self, transformations: Sequence[str]) -> VariantMaker:
        """A variant maker for some of the suite."""
        return self._maker(tuple(transformations))

    def _make(self, transformations: tuple[str, ...]) -> VariantMaker:
        from substyle.engine.styles import networks_for  # reads ONNX, which a run takes no other use of

        networks = networks_for(
            transformations,
            side=self.settings.canvas,
            threads=self.config.cores,
            precision=self.settings.style_precision,
            cache_dir=STYLE_BLOBS,
        )
        return VariantMaker(
            transformations,
            side=self.settings.canvas,
            seed=self.settings.seed,
            batch=self.config.batch,
            threads=self.config.cores,
            networks=networks,
        )
