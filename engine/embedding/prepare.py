"""Pixel pipeline, calibration images and compiled backbones of a run."""

from __future__ import annotations

import functools
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import resources
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.backbones import registry
from substyle.engine.backbones.compile import CompiledBackbone, CompileOptions, compile_source
from substyle.engine.backbones.gate import ANCHORS, GATE_IMAGES, required
from substyle.engine.backbones.lazy import LazyBackbone
from substyle.engine.backbones.runtimes.base import PrecisionPolicy, fingerprint
from substyle.engine.config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.devices import AUTO, Target, graph_batch
from substyle.engine.embedding.behaviour import CANVAS_LIBRARIES, VARIANT_LIBRARIES, definitions_of
from substyle.engine.observability import stage
from substyle.engine.store import catalog
from substyle.engine.store.catalog import Definition
from substyle.engine.store.layout import DifferentError, rows_of_shards
from substyle.engine.store.store import EmbeddingStore
from substyle.errors import SubstyleError
from substyle.kernels.philox import image_keys
from substyle.pipelines import packaged_photographs
from substyle.pipelines.dali import release_memory
from substyle.pipelines.decode import Decoder
from substyle.pipelines.sources import ImageRecord
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.base import Network
from substyle.pipelines.transforms.registry import load_all
from substyle.pipelines.variants import Variant, VariantMaker

STYLE_BLOBS = "styles"  # folder in the cache


class PixelPipeline:
    """Tools of one run, created once: decoder, style networks, variant makers."""

    def __init__(self, settings: Settings, config: EmbedConfig) -> None:
        config = config.here()
        torch.set_num_threads(config.cores)
        load_all()
        self.settings, self.config = settings, config
        self.target = Target(config.device, config.runtime)
        self._maker = functools.cache(self.new_maker)
        self._network = functools.cache(self._load_network)
        self.backbone = functools.cache(self._find_backbone)

    def _find_backbone(self, choice: BackboneChoice) -> LazyBackbone:
        settings, batch = self.settings, self.config.graph_images
        return registry.lazy(
            choice.name, registry.LoadContext(settings.canvas, batch, settings.seed, checkpoint=choice.checkpoint)
        )

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder of photographs."""
        settings, config = self.settings, self.config
        return Decoder(
            settings.canvas,
            config.images,
            config.cores,
            device=config.device,
            orientation=settings.orientation,
            crop_pct=settings.crop_pct,
        )

    @cached_property
    def definitions(self) -> list[Definition]:
        """The transformations, as they are defined now."""
        return definitions_of(self.settings.transformations, self.settings, self.config)

    def release(self) -> None:
        """Free decoder, networks and variant makers; they are created again when needed."""
        self.__dict__.pop("decoder", None)
        self._maker.cache_clear()
        self._network.cache_clear()
        if self.target.on_gpu:
            release_memory()
            torch.cuda.empty_cache()

    def maker(self, transformations: Sequence[str], seed: int | None = None) -> VariantMaker:
        """Return the variant maker for these transformations; default seed: that of the settings."""
        return self._maker(tuple(transformations), self.settings.seed if seed is None else seed)

    def _load_network(self, network: str, styles: tuple[str, ...]) -> Network:
        from substyle.engine.style_transfer.networks import networks_for  # imports ONNX, which is not needed otherwise

        return networks_for(
            styles,
            side=self.settings.canvas,
            threads=self.config.cores,
            precision=self.settings.style_precision,
            cache_dir=STYLE_BLOBS,
            device=self.config.device,
        )[network]

    def new_maker(self, transformations: Sequence[str], seed: int) -> VariantMaker:
        """Create a variant maker that is not kept."""
        wanted = base.by_network(transformations)
        return VariantMaker(
            transformations,
            side=self.settings.canvas,
            seed=seed,
            batch=self.config.images,
            threads=self.config.cores,
            networks={name: self._network(name, tuple(styles)) for name, styles in wanted.items()},
            device=self.config.device,
        )


def gate_keys(records: Sequence[ImageRecord], seed: int) -> list[str]:
    """Return the keys of the photographs that gates use, in a fixed random order."""
    order = np.argsort(image_keys(seed, [f"gate:{record.key}" for record in records]))
    return [records[i].key for i in order[: 2 * GATE_IMAGES]]


class Samples(ABC):
    """Photographs in all variants, computed on first use.

    Args:
        pipeline: computes the variants.
        seed: seed of their parameters.
    """

    def __init__(self, pipeline: PixelPipeline, seed: int) -> None:
        self.pipeline, self.seed = pipeline, seed
        self._fingerprints: dict[str, str] = {}
        self._made: dict[tuple[str, tuple[int, ...]], NDArray[np.uint8]] = {}

    @property
    @abstractmethod
    def decoded(self) -> tuple[NDArray[np.uint8], list[str]]:
        """Canvases of G photographs, (G, S, S, 3) uint8, and their keys."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return everything that determines the canvases, as plain JSON."""

    def images(self) -> int:
        """Return G, the number of photographs."""
        return len(self.decoded[0])

    def names(self) -> Sequence[str]:
        """Return the transformations that are computed: gates need no files of real ones."""
        own = self.pipeline.settings.transformations
        real = base.real(own)
        return tuple(name for name in own if name not in real)

    def anchors(self) -> Sequence[str]:
        """Return the transformations that are compared with every suite, which may lack some."""
        return ANCHORS

    def family(self, name: str) -> str:
        """Return the network of a transformation, if one computes it, else its name."""
        return base.get(name).network or name

    def first(self) -> NDArray[np.uint8]:
        """Return the first batch of canvases. Shape: (b, S, S, 3) uint8."""
        return self.decoded[0][: self.pipeline.config.images]

    def pictures(self, wanted: Mapping[str, Sequence[int]]) -> dict[str, NDArray[np.uint8]]:
        """Return transformations of photographs, given by position, (R, S, S, 3) uint8 each; computed once."""
        missing = {name: tuple(chosen) for name, chosen in wanted.items() if (name, tuple(chosen)) not in self._made}
        for chosen in dict.fromkeys(missing.values()):
            mine = {name for name, own in missing.items() if own == chosen}
            for name, pixels_RSSC in self._transformed(mine, chosen).items():
                self._made[name, chosen] = pixels_RSSC
        return {name: self._made[name, tuple(chosen)] for name, chosen in wanted.items()}

    def _transformed(self, mine: set[str], chosen: Sequence[int]) -> dict[str, NDArray[np.uint8]]:
        """Transformations of the same photographs."""
        canvas_GSSC, keys = self.decoded
        size = self.pipeline.config.images
        # a network computes all styles of the suite at once, and is compiled for them
        families = {self.family(name) for name in mine}
        known = dict.fromkeys(["identity", *self.names(), *mine])
        names = [name for name in known if name == "identity" or self.family(name) in families]
        make = self.pipeline.new_maker(names, self.seed)
        parts: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in mine}
        for start in range(0, len(chosen), size):
            some = list(chosen[start : start + size])
            for variant in self._varied(make, canvas_GSSC[some], [keys[i] for i in some]):
                if variant.name in mine:
                    parts[variant.name].append(variant.pixels_BSSC.numpy(force=True))
        return {name: np.concatenate(found) for name, found in parts.items()}

    def _varied(self, make: VariantMaker, canvas_BSSC: NDArray[np.uint8], keys: Sequence[str]) -> Iterator[Variant]:
        yield from make(torch.from_numpy(canvas_BSSC).to(self.pipeline.target.torch_device), keys)

    def fingerprint(self, name: str) -> str:
        """Return a digest that changes with any pixel of a transformation's pictures."""
        if name not in self._fingerprints:
            self._fingerprints[name] = self.digest(
                [name], lambda: list(self.pictures({name: range(self.images())}).values())
            )
        return self._fingerprints[name]

    def digest(self, names: Sequence[str], make: Callable[[], list[NDArray[np.uint8]]]) -> str:
        """Return a digest of everything that affects variants, or of their pixels if a plug-in computes some."""
        settings = self.pipeline.settings
        if not all(base.get(name).packaged for name in names):
            return fingerprint(make())
        varied = [name for name in names if name != "identity"]  # whose pixels are those of the canvases
        facts = {
            **self.facts(),
            "names": list(names),
            "canvas": settings.canvas,
            "device": self.pipeline.target.identity,
            "seed": self.seed,
            "transformations": [
                (made.name, made.hash) for made in definitions_of(varied, settings, self.pipeline.config)
            ],
            "style_precision": settings.style_precision,
            "batch": self.pipeline.config.images,
            "versions": cache.versions(*VARIANT_LIBRARIES),
        }
        return cache.key(facts)


class PackagedSamples(Samples):
    """Photographs that packages ship: results of gates and quantisation do not depend on the user's photographs."""

    def __init__(self, pipeline: PixelPipeline) -> None:
        super().__init__(pipeline, seed=0)

    @cached_property
    def decoded(self) -> tuple[NDArray[np.uint8], list[str]]:
        """Canvases of the gate's photographs, (32, S, S, 3) uint8, and their keys."""
        return packaged_photographs.canvases(GATE_IMAGES, self.pipeline.settings.canvas)

    def facts(self) -> dict[str, Any]:
        """Return everything that determines the canvases, as plain JSON."""
        return {"photographs": cache.versions(*packaged_photographs.SOURCES)}

    def extra_samples(self) -> list[NDArray[np.uint8]]:
        """Return a batch of other photographs for each transformation, a different subset each."""
        canvas_NSSC, keys = packaged_photographs.canvases(2 * GATE_IMAGES, self.pipeline.settings.canvas)
        canvas_NSSC, keys = canvas_NSSC[GATE_IMAGES:], keys[GATE_IMAGES:]
        size = graph_batch(self.pipeline.config.images)
        # variants of groups of `size` photographs; transformation t keeps those of group t modulo their number
        starts = range(0, len(keys), size)
        kept: list[NDArray[np.uint8]] = []
        for g, start in enumerate(starts):
            group = [(start + i) % len(keys) for i in range(size)]
            make = self.pipeline.maker(self.names(), self.seed)
            for t, variant in enumerate(self._varied(make, canvas_NSSC[group], [keys[i] for i in group])):
                if t % len(starts) == g:
                    kept.append(variant.pixels_BSSC.numpy(force=True))
        return kept

    def extra_fingerprint(self) -> str:
        """Return a digest of everything that affects `extra_samples`."""
        return self._extra_fingerprint

    @cached_property
    def _extra_fingerprint(self) -> str:
        return self.digest(self.names(), self.extra_samples)


class OwnSamples(Samples):
    """Photographs of a store, or of the source of a new one.

    Args:
        pipeline: decodes them and computes the variants.
        records: the photographs by key.
        keys: keys in the order in which they are tried.
        count: G, unless fewer decode.
        policies: policies that backbones of the store were embedded with, by name.
    """

    def __init__(
        self,
        pipeline: PixelPipeline,
        records: Mapping[str, ImageRecord],
        keys: Sequence[str],
        count: int,
        policies: Mapping[str, PrecisionPolicy] | None = None,
    ) -> None:
        super().__init__(pipeline, pipeline.settings.seed)
        self.records, self.keys, self.count, self.policies = records, keys, count, policies or {}

    @cached_property
    def decoded(self) -> tuple[NDArray[np.uint8], list[str]]:
        """Canvases of G photographs that decode, (G, S, S, 3) uint8, and their keys."""
        kept: list[NDArray[np.uint8]] = []
        keys: list[str] = []
        # compressed archives are fast to read in order only
        early = {key: self._decode(key) for key in sorted(self.keys[: self.count])}
        for key in self.keys:
            if len(keys) == self.count:
                break
            canvas = early[key] if key in early else self._decode(key)
            if canvas is not None:
                kept.append(canvas)
                keys.append(key)
        if not keys:
            raise SubstyleError(f"cannot decode any of {len(self.keys)} sampled images")
        return np.concatenate(kept), keys

    def _decode(self, key: str) -> NDArray[np.uint8] | None:
        """The canvas (1, S, S, 3) uint8 of one photograph; None if it cannot be decoded."""
        try:
            decoded = self.pipeline.decoder([self.records[key].read()])
        except (OSError, KeyError):
            return None
        return decoded.canvas_BSSC.numpy(force=True).copy() if decoded.ok_B[0] else None

    @cached_property
    def _hashes(self) -> list[tuple[str, str]]:
        return [(key, self._hash(key)) for key in self.keys]

    def _hash(self, key: str) -> str:
        try:
            return hashlib.sha256(self.records[key].read()).hexdigest()
        except (OSError, KeyError):
            return "cannot be read"

    def facts(self) -> dict[str, Any]:
        """Return everything that determines the canvases, without decoding: files, settings and libraries."""
        return {
            "files": self._hashes,
            "count": self.count,
            "orientation": self.pipeline.settings.orientation,
            "crop_pct": self.pipeline.settings.crop_pct,
            "versions": cache.versions(*CANVAS_LIBRARIES),
        }


OVERHEAD, GPU_OVERHEAD = 0.1, 0.01  # conservative seconds per photograph for decoding and variants


def decoded_jpeg(pipeline: PixelPipeline) -> str:
    """Digest of the canvas of a JPEG file that scikit-learn ships.

    nvJPEG decodes on the hardware engine where a GPU has one that the process may use, else by CUDA; NVIDIA does not
    promise equal pixels.
    """
    china = resources.files("sklearn.datasets.images") / "china.jpg"
    return fingerprint([pipeline.decoder([china.read_bytes()]).canvas_BSSC.cpu().numpy()])[:16]


def require_weights(choices: Sequence[BackboneChoice], pipeline: PixelPipeline) -> None:
    """Load all checkpoints before anything is decoded. Raises WeightsError for one that does not fit."""
    for choice in choices:
        if choice.checkpoint is not None:
            pipeline.backbone(choice).require_loadable()


def prepare_backbones(
    choices: Sequence[BackboneChoice], own: OwnSamples, *, quiet: bool = False
) -> list[CompiledBackbone]:
    """Load, compile and gate backbones: on packaged photographs, and on a few of the store's own.

    Args:
        choices: backbones that `check_backbones` has passed.

    Raises:
        ConfigError: the runtime does not support a precision.
        WeightsError: weights are not available.
        GateError: a compiled backbone disagrees with its reference.
    """
    pipeline = own.pipeline
    settings, config, target = pipeline.settings, pipeline.config, pipeline.target
    samples = PackagedSamples(pipeline)
    decoded = {catalog.DECODED_JPEG: decoded_jpeg(pipeline)} if target.on_gpu else {}
    for choice in choices:
        target.require_precision(f"{choice.name}: precision", choice.precision or config.precision)
    require_weights(choices, pipeline)
    compiled: list[CompiledBackbone] = []
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
                gate_cosine=config.gate_cosine,
                policy=own.policies.get(choice.names[0]),
            )

            def note(text: str, name: str = choice.name) -> None:
                bar.note(f"{name}: {text}")

            source = pipeline.backbone(choice)
            made = compile_source(source, samples, options, note, own=own)
            source.unload()
            compiled.append(replace(made, runtime={**made.runtime, **decoded}))
            bar.advance()
    return compiled


def require_asked(
    store: EmbeddingStore, choices: Sequence[BackboneChoice], pipeline: PixelPipeline, device: str, runtime: str
) -> None:
    """Check, before compiling, that a store's backbones match the requested ones.

    Compares networks, and precision, device and runtime unless auto. Facts known only after compiling are compared when
    there is something to embed.

    Args:
        device, runtime: as given by the user.

    Raises:
        DifferentError: a backbone was embedded with another network or other settings.
    """
    stored = {entry.name: entry.facts for entry in store.backbones()}
    for choice in choices:
        source = pipeline.backbone(choice)
        # weights of a hub are compared when there is something to embed: loading them takes long
        is_known = source.identity is not None or not source.packaged or registry.check_name(choice.names[0]).trained
        specs = {spec.name: spec.describe() for spec in source.members} if is_known else {}
        source.unload()
        for name in choice.names:
            facts = stored.get(name)
            if facts is None or facts["runtime"]["name"] == "imported":
                continue
            made, asked = facts["runtime"], {"computed_with": choice.name}
            if device != AUTO:
                asked["device"] = device.partition(":")[0]
            if facts.get("gate") is not None:  # others are plain arithmetic in float32
                if runtime not in (AUTO, re.split(r"[._]", made["name"])[0]):
                    asked["name"] = runtime
                if (precision := choice.precision or pipeline.config.precision) != AUTO:
                    asked["precision"] = precision
            now = {**facts, "spec": specs.get(name, facts["spec"]), "runtime": {**made, **asked}}
            if changed := catalog.differences(facts, now):
                how = catalog.remedy(facts, {"runtime": pipeline.target.describe() | {"name": runtime}}, changed)
                raise DifferentError(
                    f"{store.path}: {name} was embedded with different settings: {'; '.join(changed)}{how}"
                )
            needed = required(made["precision"], pipeline.config.gate_cosine) if facts.get("gate") is not None else 0.0
            if (lowest := catalog.lowest_cosine(facts)) < needed:
                raise DifferentError(
                    f"{store.path}: {name} was embedded in {made['precision']} with a minimum cosine of {lowest:.5f} "
                    f"with float32, and {needed} is required: set embed.gate_cosine, or use another store"
                )


def shard_rows(backbones: Sequence[CompiledBackbone], variants: int, images: int, config: EmbedConfig) -> int:
    """Return R: as configured, else that of `rows_of_shards`; at least a compiled graph's batch, which is padded."""
    if config.shard_rows:
        return config.shard_rows
    seconds = (GPU_OVERHEAD if config.on_gpu else OVERHEAD) + sum(variants / backbone.rate for backbone in backbones)
    widest = max(spec.dim for backbone in backbones for spec in backbone.members or (backbone.spec,))
    rows = rows_of_shards(images, variants * widest * np.dtype(config.dtype).itemsize, seconds)
    return max(rows, 1 << (config.graph_images.bit_length() - 1))
