"""Before the first embedding: compile backbones and pass the gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from substyle.engine.backbones import registry
from substyle.engine.backbones.compile import CompiledBackbone, CompileOptions, compile_source
from substyle.engine.backbones.shared import share
from substyle.engine.backbones.source import Source
from substyle.engine.progress import stage
from substyle.engine.samples import Samples
from substyle.engine.workshop import EmbedConfig
from substyle.kernels.errors import ConfigError

SHARD_SECONDS = 60.0  # what a shard should take at most; the promise is two minutes
MAX_SHARD_ROWS = 1024
OVERHEAD, GPU_OVERHEAD = 0.1, 0.01  # seconds a photograph for decode and variants, on the slow side


@dataclass(frozen=True)
class BackboneChoice:
    """A backbone as the user asks for it: a name, and where its weights or precision differ from the default."""

    name: str
    checkpoint: Path | None = None
    precision: str | None = None


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
    settings, config, target = samples.workshop.settings, samples.workshop.config, samples.workshop.target
    for choice in choices:
        target.require_precision(f"{choice.name}: precision", choice.precision or config.precision)
    compiled = []
    with stage("prepare", len(choices), "backbones", quiet=quiet) as bar:
        for choice in choices:
            bar.note(choice.name)
            context = registry.LoadContext(
                canvas=settings.canvas,
                batch=config.graph_images,
                seed=settings.seed,
                checkpoint=choice.checkpoint,
                calibration=samples.canvas,
                calibration_facts=samples.canvas_facts,
            )
            options = CompileOptions(
                batch=config.images,
                canvas=settings.canvas,
                threads=config.cores,
                precision=choice.precision or config.precision,
                dtype=config.dtype,
                target=target,
            )
            identity = registry.identity(choice.name, context)
            source = Source(partial(registry.load, choice.name, context), identity)
            compiled.append(compile_source(source, samples, options))
            bar.advance()
    return share(compiled, samples)


def shard_rows(backbones: Sequence[CompiledBackbone], variants: int, images: int, config: EmbedConfig) -> int:
    """R: as configured, else the largest power of two whose shard takes under a minute and that gives a few shards."""
    if config.shard_rows:
        return config.shard_rows
    seconds = (GPU_OVERHEAD if config.on_gpu else OVERHEAD) + sum(variants / backbone.rate for backbone in backbones)
    # shorter than a compiled graph's batch, a shard would take as long: its batches are padded
    few = max(images / 4, config.images)
    rows = max(min(SHARD_SECONDS / seconds, MAX_SHARD_ROWS, few), config.graph_images)
    return 1 << (int(rows).bit_length() - 1)
