"""Before the first embedding: sample photographs, compile networks and backbones, pass the gate."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine.backbones import registry
from substyle.engine.backbones.compile import (
    AUTO,
    CompiledBackbone,
    CompileOptions,
    check_precision,
    compile_backbone,
    graph_batch,
)
from substyle.engine.backbones.gate import GATE_IMAGES
from substyle.engine.precision import Precision
from substyle.engine.progress import stage
from substyle.engine.store.layout import DTYPES
from substyle.engine.styles import networks_for
from substyle.kernels.errors import ConfigError, SubstyleError
from substyle.kernels.philox import image_keys
from substyle.pipelines.decode import Decoder
from substyle.pipelines.plugins import load_all
from substyle.pipelines.sources import ImageRecord
from substyle.pipelines.variants import VariantMaker

SHARD_SECONDS = 60.0  # what a shard should take at most; the promise is two minutes
MAX_SHARD_ROWS = 1024


@dataclass(frozen=True)
class EmbedConfig:
    """How embeddings are computed.

    Attributes:
        batch: images in one run of a network.
        threads: CPU threads; 0 takes all there are.
        precision: arithmetic of compiled backbones: bf16, fp16, fp32, or auto, which is bf16 with as many of a
            backbone's first layers in float32 as its gate asks for.
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
class BackboneChoice:
    """A backbone as the user asks for it: a name, and where its weights or precision differ from the default."""

    name: str
    checkpoint: Path | None = None
    precision: str | None = None


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
        networks = networks_for(
            transformations,
            side=self.settings.canvas,
            threads=self.config.cores,
            precision=self.settings.style_precision,
        )
        return VariantMaker(
            transformations,
            side=self.settings.canvas,
            seed=self.settings.seed,
            batch=self.config.batch,
            threads=self.config.cores,
            networks=networks,
        )


def calibration_keys(records: Sequence[ImageRecord], seed: int) -> list[str]:
    """Keys of the photographs that gates and recalibrations look at, best first: a fixed random order."""
    order = np.argsort(image_keys(seed, [f"calibration:{record.key}" for record in records]))
    return [records[i].key for i in order[: 2 * GATE_IMAGES]]


class Samples:
    """Real photographs of the source in all variants, made when they are first needed."""

    def __init__(self, workshop: Workshop, records: Mapping[str, ImageRecord], keys: Sequence[str]) -> None:
        self.workshop, self.records, self.keys = workshop, records, keys
        self._canvas: tuple[NDArray[np.uint8], list[str]] | None = None
        self._variants: list[NDArray[np.uint8]] | None = None

    def canvas(self) -> NDArray[np.uint8]:
        """Canvases of up to 32 photographs that decode. Shape: (G, S, S, 3) uint8."""
        return self._decoded()[0]

    def variants(self) -> list[NDArray[np.uint8]]:
        """All variants of these in batches of at most B, identity first."""
        if self._variants is None:
            canvas, keys = self._decoded()
            make = self.workshop.maker(self.workshop.settings.transformations)
            size = self.workshop.config.batch
            self._variants = [
                variant.pixels_BSSC.numpy()
                for start in range(0, len(keys), size)
                for variant in make(torch.from_numpy(canvas[start : start + size]), keys[start : start + size])
            ]
        return self._variants

    def _decoded(self) -> tuple[NDArray[np.uint8], list[str]]:
        if self._canvas is None:
            kept: list[NDArray[np.uint8]] = []
            keys: list[str] = []
            for key in self.keys:
                if len(keys) == GATE_IMAGES:
                    break
                try:
                    decoded = self.workshop.decoder([self.records[key].read()])
                except (OSError, KeyError):
                    continue  # the loop quarantines it with its reason
                if decoded.ok_B[0]:
                    kept.append(decoded.canvas_BSSC.numpy().copy())
                    keys.append(key)
            if not keys:
                raise SubstyleError(f"none of {len(self.keys)} sampled images could be decoded")
            self._canvas = np.concatenate(kept), keys
        return self._canvas


def prepare_backbones(
    choices: Sequence[BackboneChoice], samples: Samples, *, quiet: bool = False
) -> list[CompiledBackbone]:
    """Load, compile and gate backbones.

    Raises:
        ConfigError: a bad name, or one asked for twice.
        WeightsError: weights that cannot be had.
        GateError: a compiled backbone that does not agree with its reference.
    """
    names = [choice.name for choice in choices]
    for i, name in enumerate(names):
        registry.check_name(name)
        if name in names[:i]:
            raise ConfigError("backbone", name, "each backbone once")
    settings, config = samples.workshop.settings, samples.workshop.config
    compiled = []
    with stage("prepare", len(choices), "backbones", quiet=quiet) as bar:
        for choice in choices:
            bar.note(choice.name)
            context = registry.LoadContext(
                canvas=settings.canvas,
                batch=graph_batch(config.batch),
                seed=settings.seed,
                checkpoint=choice.checkpoint,
                calibration=samples.canvas,
            )
            options = CompileOptions(
                batch=config.batch,
                canvas=settings.canvas,
                threads=config.cores,
                precision=choice.precision or config.precision,
                dtype=config.dtype,
            )
            backbone = registry.load(choice.name, context)
            compiled.append(compile_backbone(backbone, samples.variants(), options, images=len(samples.canvas())))
            bar.advance()
    return compiled


def shard_rows(backbones: Sequence[CompiledBackbone], variants: int, images: int, config: EmbedConfig) -> int:
    """R: as configured, else the largest power of two whose shard takes under a minute and that gives a few shards."""
    if config.shard_rows:
        return config.shard_rows
    overhead = 0.1  # seconds per photograph for decode and variants, on the slow side
    seconds = overhead + sum(variants / backbone.rate for backbone in backbones)
    rows = max(min(SHARD_SECONDS / seconds, MAX_SHARD_ROWS, images / 4), config.batch if images >= config.batch else 1)
    return 1 << (int(rows).bit_length() - 1)
