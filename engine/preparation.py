"""Before the first embedding: compile backbones and pass the gate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from substyle.engine.backbones import registry
from substyle.engine.backbones.compile import CompiledBackbone, CompileOptions, compile_source
from substyle.engine.backbones.shared import share
from substyle.engine.backbones.source import Source
from substyle.engine.embed_config import BackboneChoice, EmbedConfig
from substyle.engine.precision import AUTO
from substyle.engine.progress import stage
from substyle.engine.samples import Samples
from substyle.engine.store import catalog
from substyle.engine.store.embeddings import EmbeddingStore
from substyle.engine.store.errors import DifferentError
from substyle.kernels.errors import ConfigError

SHARD_SECONDS = 60.0  # what a shard should take at most; the promise is two minutes
MAX_SHARD_ROWS = 1024
OVERHEAD, GPU_OVERHEAD = 0.1, 0.01  # seconds a photograph for decode and variants, on the slow side


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
            options = CompileOptions(
                batch=config.images,
                canvas=settings.canvas,
                threads=config.cores,
                precision=choice.precision or config.precision,
                dtype=config.dtype,
                target=target,
            )
            compiled.append(compile_source(_source(choice, samples), samples, options))
            bar.advance()
    return share(compiled, samples)


def _source(choice: BackboneChoice, samples: Samples) -> Source:
    settings, config = samples.workshop.settings, samples.workshop.config
    context = registry.LoadContext(
        canvas=settings.canvas,
        batch=config.graph_images,
        seed=settings.seed,
        checkpoint=choice.checkpoint,
        calibration=samples.canvas,
        calibration_facts=samples.canvas_facts,
    )
    return Source(partial(registry.load, choice.name, context), registry.identity(choice.name, context))


def require_asked(
    store: EmbeddingStore, choices: Sequence[BackboneChoice], samples: Samples, device: str, runtime: str
) -> None:
    """Check that what a store has of backbones is what is asked for, before anything is compiled.

    Compared are the code of plug-ins, weights in files, and precision, device and runtime where they are not auto. What
    only compiling tells is compared when there is something to embed.

    Args:
        device, runtime: as the user asks for them.

    Raises:
        DifferentError: one was made from other weights, by other code or in another way.
    """
    there = {entry.name: entry.facts for entry in store.backbones()}
    for choice in choices:
        facts = there.get(choice.name)
        if facts is None or facts["runtime"]["name"] == "imported":
            continue
        spec, made = facts["spec"], facts["runtime"]
        pairs = {"code": (spec.get("code", ""), registry.check_name(choice.name).code)}
        source = _source(choice, samples)
        if source.identity is not None and "weights" in source.identity:  # else nothing but loading tells
            pairs["weights"] = (spec["weights_hash"], source.spec.weights_hash)
        if device != AUTO:
            pairs["device"] = (made.get("device", "cpu"), device.partition(":")[0])
        if facts.get("gate") is not None:  # others are plain arithmetic in float32
            if runtime not in (AUTO, re.split(r"[._]", made["name"])[0]):
                pairs["runtime"] = (made["name"], runtime)
            if (precision := choice.precision or samples.workshop.config.precision) != AUTO:
                pairs["precision"] = (made["precision"], precision)
        said = [f"{name} {old} there, {new} now" for name, (old, new) in pairs.items() if old != new]
        if said:
            how = catalog.remedy(facts, {"runtime": samples.workshop.target.describe() | {"name": runtime}})
            raise DifferentError(f"{store.path}: {choice.name} was made differently: {'; '.join(said)}{how}")


def shard_rows(backbones: Sequence[CompiledBackbone], variants: int, images: int, config: EmbedConfig) -> int:
    """R: as configured, else the largest power of two whose shard takes under a minute and that gives a few shards."""
    if config.shard_rows:
        return config.shard_rows
    seconds = (GPU_OVERHEAD if config.on_gpu else OVERHEAD) + sum(variants / backbone.rate for backbone in backbones)
    # shorter than a compiled graph's batch, a shard would take as long: its batches are padded
    few = max(images / 4, config.images)
    rows = max(min(SHARD_SECONDS / seconds, MAX_SHARD_ROWS, few), config.graph_images)
    return 1 << (int(rows).bit_length() - 1)
