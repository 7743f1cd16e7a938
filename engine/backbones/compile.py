"""From a backbone to a gated runtime. What an earlier run has found stands in the cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.backbones import cache
from substyle.engine.backbones.artefact import Artefact, Mixture
from substyle.engine.backbones.fixed_batch import FixedBatch, Started, graph_batch
from substyle.engine.backbones.runtimes.torch import TorchThreads
from substyle.engine.backbones.samples import GateSamples, GivenSamples
from substyle.engine.backbones.search import Search
from substyle.engine.backbones.source import Source
from substyle.engine.backbones.spec import Backbone, BackboneSpec, Embed
from substyle.engine.precision import AUTO, check_precision


@dataclass(frozen=True)
class CompiledBackbone:
    """A backbone that may fill a store.

    Attributes:
        spec: its facts.
        runtime: ``{"name", "precision", "float32_layers", "version"}``.
        gate: what the gate measured; None for plain arithmetic, which is its own reference.
        rate: images per second of the network alone, at its compiled batch, as first measured on this device.
    """

    spec: BackboneSpec
    embed: Embed
    runtime: dict[str, Any]
    gate: dict[str, Any] | None
    rate: float

    def start(self, canvas_BSSC: NDArray[np.uint8]) -> Started:
        """`embed` in the background where the runtime can do that, else at once. Nobody may write to the canvas."""
        if isinstance(self.embed, FixedBatch | TorchThreads):
            return self.embed.start(canvas_BSSC)
        return _Ended(self.embed(canvas_BSSC))


@dataclass(frozen=True)
class _Ended:
    embedded_BD: NDArray[np.float32]

    def result(self) -> NDArray[np.float32]:
        return self.embedded_BD


@dataclass(frozen=True)
class CompileOptions:
    """How to compile.

    Attributes:
        batch: compiled batch B; canvas: canvas side S in pixels; threads: CPU threads of one inference.
        precision: ``fp32``, ``bf16``, ``fp16``; ``auto``: bf16, with as many of the first layers in float32 as the
            gate asks for; ``int8``: 8-bit products, with as many of the first layers in bf16.
        dtype: type of the store's embeddings; the gate compares after its cast.
    """

    batch: int
    canvas: int
    threads: int
    precision: str = AUTO
    dtype: str = "float16"

    def __post_init__(self) -> None:
        check_precision("precision", self.precision)


def compile_backbone(
    backbone: Backbone, samples_GSSC: Sequence[NDArray[np.uint8]], options: CompileOptions, *, images: int
) -> CompiledBackbone:
    """Compile and gate a backbone.

    Args:
        backbone: loaded weights.
        samples_GSSC: the gate's input: batches of real photographs in every variant, each (b, S, S, 3) uint8, b ≤ B.
        images: how many photographs these are variants of.

    Raises:
        GateError: the compiled backbone does not agree with its float32 reference.
    """
    return compile_source(Source.of(backbone), GivenSamples(samples_GSSC, images), options)


def compile_source(source: Source, samples: GateSamples, options: CompileOptions) -> CompiledBackbone:
    """`compile_backbone` that reads weights and makes samples only where the cache has no answer.

    Raises:
        GateError: the compiled backbone does not agree with its float32 reference.
    """
    measured = {"batch": options.batch, "threads": options.threads, "device": cache.device()}
    if not source.compiled:
        module = source.backbone.module
        assert module is not None
        plain = TorchThreads(module, options.threads)
        runtime = {"name": "torch", "precision": "fp32", "float32_layers": 0, "version": version("torch")}
        facts = {"spec": source.spec.describe(), "runtime": runtime, "canvas": options.canvas, **measured}
        return CompiledBackbone(source.spec, plain, runtime, None, _rate(plain, samples, facts))
    artefact = Artefact(
        source, samples, batch=graph_batch(options.batch), canvas=options.canvas, threads=options.threads
    )
    found = Search(artefact, samples, options.precision, options.dtype).result()
    mixture = Mixture.of(found)
    embed = artefact.runtime(mixture, keep=True)
    runtime = {"name": "openvino", **mixture.describe(), "version": version("openvino")}
    rate = _rate(embed, samples, {"graph": artefact.key, "runtime": runtime, **measured})
    return CompiledBackbone(source.spec, embed, runtime, found["gate"], rate)


def _rate(embed: Embed, samples: GateSamples, facts: dict[str, Any], repeats: int = 3) -> float:
    """Images per second of the backbone alone: the fastest of a few full batches, as measured once."""

    def measure() -> float:
        canvas_BSSC = samples.first()
        embed(canvas_BSSC)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            embed(canvas_BSSC)
            seconds.append(time.perf_counter() - start)
        return len(canvas_BSSC) / min(seconds)

    return float(cache.remember("rates", facts, measure))
