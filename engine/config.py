"""Configuration of studies. Imports no torch, so that options of the command line can be made from it."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictFloat, StrictInt

from substyle.engine import devices
from substyle.engine.backbones.spec import expand, named
from substyle.engine.base_config import BootstrapConfig, ResourceConfig, SamplingConfig, with_shared
from substyle.engine.devices import AUTO, EightBits, Precision, graph_batch
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.store.layout import DEFAULT_FRACTIONS, PIXELS, Codec, CropPct, Dtype, Fractions
from substyle.errors import ConfigError
from substyle.pipelines.image_header import CROP_PCT, Orientation
from substyle.pipelines.sources import SourceConfig
from substyle.pipelines.validation import Distinct, LocalPath, PathOrAddress, PowerOfTwo, validated


def _ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError("ascending integers")
    return values


@validated("analysis")
class AnalysisConfig(SamplingConfig, ResourceConfig):
    """Settings of the analysis. Raises ConfigError("analysis.<field>", ...)."""

    max_queries: Annotated[StrictInt, Field(ge=1)] = 5_000
    """Maximum number of queries: variants of test photographs (whole photographs are drawn)."""
    max_bank: Annotated[StrictInt, Field(ge=1)] = 100_000
    """Maximum number of variants of training photographs to search."""
    max_images: Annotated[StrictInt, Field(ge=2)] = 2_000
    """Maximum number of photographs per split for the geometry."""
    ks: Annotated[Distinct[Annotated[StrictInt, Field(ge=1, le=2048)]], AfterValidator(_ascending)] = (1, 5, 10, 50)
    """Numbers of neighbours of the k-NN classifier, ascending."""


BATCH, GPU_BATCH = 32, 256  # default batch sizes in images

_BEHIND = 2  # executions queued on a stream behind the running one, so that it never waits for the host

BackbonePrecision = Literal["auto", Precision, EightBits]


@validated("embed")
class EmbedConfig(ResourceConfig):
    """How embeddings are computed."""

    batch: Annotated[StrictInt, Field(ge=1, le=4096)] | None = None
    """Batch size in images. Default: 32 on a CPU, 256 on a GPU."""
    runtime: Annotated[str, Field(json_schema_extra={"enum": [AUTO, *devices.RUNTIMES]})] = AUTO
    """Runtime of compiled backbones: openvino or torch on a CPU, tensorrt or torch on a GPU; ``auto`` selects the first
    of these that is installed."""
    precision: BackbonePrecision = "auto"
    """Arithmetic of compiled backbones: bf16, fp16, fp32; int8 (OpenVINO, TensorRT) or fp8 (TensorRT), quantised on
    packaged photographs; or ``auto``: in OpenVINO bf16 with as many of the first layers in float32 as the gate
    requires, otherwise the first of bf16, fp16, fp32 that passes the gate."""
    gate: Literal["auto", "full"] = "auto"
    """Pictures on which a compiled backbone is compared with float32. ``auto``: variants of packaged photographs (each
    of four on a CPU, of 32 on a GPU), and one variant of each of 16 photographs of the store; ``full``: all variants of
    32 photographs of the store."""
    gate_cosine: Annotated[StrictFloat, Field(gt=0, lt=1)] | None = None
    """Minimum cosine that the gate requires of 16 and 8 bits. Default: 0.999 of bf16 and fp16, 0.99 of int8 and fp8. A
    lower one admits faster arithmetic, whose errors may show in scores; the store and the report state it."""
    dtype: Dtype = "float16"
    """Data type of stored embeddings."""
    codec: Codec = "none"
    """Compression of stored embeddings: none; zstd or blosc, lossless; or bitround+zstd, which rounds embeddings of
    networks to the mantissa bits of bfloat16."""
    shard_rows: Annotated[StrictInt, Field(ge=0, le=1_048_576), PowerOfTwo] = 0
    """Images per shard (unit of work), a power of two; 0 selects 16 to 1,024 by the number of photographs."""

    def __post_init__(self) -> None:
        devices.check(self.device, self.runtime)
        devices.require_precision(self.runtime, "embed.precision", self.precision)

    @property
    def cores(self) -> int:
        """Number of threads: ``threads``, else the CPUs available to this process."""
        return self.threads or len(os.sched_getaffinity(0))

    def here(self, shard_rows: int = 0) -> EmbedConfig:
        """Resolve device and runtime on this machine. Raises ConfigError if they are not available.

        Args:
            shard_rows: R of an existing store. Batches do not cross shards, so on a GPU, whose graphs take whole
                batches, the default batch is at most a shard.
        """
        found = devices.resolve(self.device, self.runtime)
        found.require_precision("embed.precision", self.precision)
        here = replace(self, device=found.device, runtime=found.runtime)
        rows = shard_rows or self.shard_rows
        return replace(here, batch=rows) if self.batch is None and here.on_gpu and 0 < rows < here.images else here

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU; False for ``auto`` until resolved by `here`."""
        return self.device.startswith("cuda")

    @property
    def images(self) -> int:
        """Batch size B."""
        return self.batch or (GPU_BATCH if self.on_gpu else BATCH)

    @property
    def graph_images(self) -> int:
        """Batch size of the compiled graph."""
        return graph_batch(self.images, on_gpu=self.on_gpu)

    @property
    def batches_in_flight(self) -> int:
        """Batches in flight per backbone: a GPU has one stream, a CPU one per core."""
        streams = 1 if self.on_gpu else self.cores
        return 1 + _BEHIND * streams * self.graph_images // self.images


@dataclass(frozen=True)
class Settings:
    """Settings that determine images and variants.

    Attributes:
        seed: seed of variants and splits.
        canvas: canvas side S in pixels.
        transformations: names in suite order.
        orientation: EXIF orientations: ``ignore``, like timm and open_clip, or ``apply``.
        style_precision: arithmetic of style networks.
        crop_pct: part of the shorter side of a photograph that the canvas shows, from 0.1 to 1.
    """

    seed: int
    canvas: int
    transformations: tuple[str, ...]
    orientation: Orientation = "ignore"
    style_precision: Precision = "bf16"
    crop_pct: float = CROP_PCT


@validated("backbone")
class BackboneChoice:
    """A backbone by name, with optional weights and precision."""

    name: str
    """Name, such as ``mae:base`` or ``timm:vit_base_patch16_224.mae``; ``substyle backbones`` lists them. The name of
    several layers or modules, such as ``mae:base@layer=0..11``, is a backbone for each, computed in one pass. With a
    name of your own in front, as in ``old=timm:resnet18``, one network with two checkpoints is two backbones."""
    checkpoint: LocalPath | None = None
    """Local file with the weights."""
    precision: BackbonePrecision | None = None
    """Overrides ``embed.precision``."""
    label: Annotated[str, Field(min_length=1, max_length=80)] | None = None
    """Shown in place of the name in the report, such as ``CLIP ViT-B/16``. Each of several layers adds
    ``@layer=<index>`` to it. Default: the name of your own."""

    def __post_init__(self) -> None:
        name, own = named(self.name)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "label", self.label or own or None)

    @property
    def names(self) -> list[str]:
        """Names of its backbones: one for each layer."""
        return expand(self.name)


_PLACE = re.compile(r"\b(?:layer|module)=[^,]+")


def labels_of(choices: Sequence[BackboneChoice]) -> dict[str, str]:
    """Return the labels of backbones that have one, by name. Raises ConfigError if two have the same."""
    found: dict[str, str] = {}
    for choice in (choice for choice in choices if choice.label):
        for name in choice.names:
            options = "" if name == choice.name else "@" + ",".join(_PLACE.findall(name.rpartition("@")[2]))
            found[name] = f"{choice.label}{options}"
    if len(set(found.values())) < len(found):
        raise ConfigError("label", ", ".join(found.values()), "a different label for each backbone")
    return found


def names_of(choices: Sequence[BackboneChoice]) -> list[str]:
    """Return the names of all backbones of choices."""
    return [name for choice in choices for name in choice.names]


LOCAL, RAY = "local", "ray"
_CPU_OR_GPU = (AUTO, "cpu", "cuda")


@validated("executor")
class ExecutorConfig:
    """Processes that embed shards."""

    kind: Literal["auto", "local", "ray"] = "auto"
    """``local``: this process; ``ray``: workers of a Ray cluster, each with its own GPU or, on CPUs, ``threads``
    cores; ``auto``: ``ray`` with ``address`` or ``workers``, else ``local``."""
    address: str = ""
    """Address of a running Ray cluster: ``host:port``, or ``auto`` for the one on this machine. Default: $RAY_ADDRESS,
    else a new Ray instance on this machine."""
    workers: Annotated[StrictInt, Field(ge=0, le=65536)] = 0
    """Number of workers; 0: as many as fit. On this machine's CPUs, ``threads`` are by default an equal part of its
    cores."""
    retries: Annotated[StrictInt, Field(ge=0, le=100)] = 2
    """Retries of a shard whose worker died or failed, on another worker if possible."""

    def __post_init__(self) -> None:
        if self.kind == LOCAL and (self.address or self.workers):
            name = "address" if self.address else "workers"
            raise ConfigError(f"executor.{name}", getattr(self, name), f'only with executor.kind = "{AUTO}" or "{RAY}"')
        if "://" in self.address:
            raise ConfigError("executor.address", self.address, "auto or host:port, as printed by `ray start`")

    @property
    def local(self) -> bool:
        """Whether this process embeds, and no worker."""
        return self.kind == LOCAL or (self.kind == AUTO and not self.address and not self.workers)

    @property
    def joins(self) -> str:
        """Address of the cluster to join; empty to start a new Ray instance."""
        address = self.address or os.environ.get("RAY_ADDRESS", "")
        return "" if address == "local" else address

    def here(self, config: EmbedConfig, shard_rows: int = 0) -> EmbedConfig:
        """`EmbedConfig.here` for this executor: with Ray, ``threads`` are per worker.

        Raises:
            ConfigError: the device, runtime or Ray is not available.
        """
        if self.local:
            return config.here(shard_rows)
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("executor.kind", RAY, f"{LOCAL} without workers and address, or install the extra ray")
        if config.device not in _CPU_OR_GPU:
            raise ConfigError("device", config.device, f"{', '.join(_CPU_OR_GPU)} (Ray assigns the GPUs)")
        found = config.here(shard_rows)
        return dataclasses.replace(found, threads=config.threads or self._share(found))

    def _share(self, config: EmbedConfig) -> int:
        """Default cores per worker: an equal part of this machine's cores."""
        workers = 1 if self.joins else self.workers
        if config.on_gpu:
            import torch

            workers = torch.cuda.device_count()
        return max(config.cores // max(workers, 1), 1)


HERE = ExecutorConfig()


Share = Annotated[StrictFloat, Field(gt=0, lt=1)]


@validated("splits")
class SplitConfig:
    """Fractions of train, validation and test if the source has no splits; they sum to 1."""

    train: Share = DEFAULT_FRACTIONS[0]
    """Fraction of images to train probes on."""
    val: Share = DEFAULT_FRACTIONS[1]
    """Fraction of images to select settings on."""
    test: Share = DEFAULT_FRACTIONS[2]
    """Fraction of images to score probes on."""

    def __post_init__(self) -> None:
        if abs(sum(self.fractions) - 1.0) > 1e-6:
            raise ConfigError("splits", list(self.fractions), "fractions that sum to 1")

    @property
    def fractions(self) -> Fractions:
        """(train, val, test)."""
        return self.train, self.val, self.test


@validated("track")
class TrackConfig:
    """Experiment tracker that shows progress, throughput, tables and the report of a run."""

    to: Literal["", "trackio", "wandb", "mlflow", "tensorboard"] = ""
    """Library of the tracker, configured by its own environment variables; empty for none. TensorBoard writes to
    ``tensorboard/`` in the output folder."""
    project: Annotated[str, Field(min_length=1, max_length=80)] = "substyle"
    """Project (of MLflow: experiment) of the run."""


def _by_name(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _or_names(schema: dict[str, Any]) -> None:
    schema["items"] = {"anyOf": [{"type": "string"}, schema["items"]]}


@validated()
class Study(BootstrapConfig, ResourceConfig):
    """Configuration of a study."""

    name: str
    """Name of the study, shown in the report."""
    backbones: Annotated[
        tuple[Annotated[BackboneChoice, BeforeValidator(_by_name)], ...],
        Field(min_length=1, json_schema_extra=_or_names),
    ]
    """Backbones, at least one: names, or tables with name, checkpoint, precision and label."""
    note: Annotated[str, Field(max_length=2000)] = ""
    """Text about the study, which the report shows below its name."""
    images: PathOrAddress | None = None
    """Photographs: a folder, a list, tar shards, Parquet files, a Hugging Face dataset, a NumPy archive, or a glob
    pattern; can be set on the command line instead."""
    store: PathOrAddress | None = None
    """Store of the embeddings: a path or an address such as ``s3://bucket/photographs.zarr``. Default: ``store.zarr``
    in the output folder."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """Kind and columns of the source of photographs, if not detected."""
    suite: str = "substance31"
    """Suites, suite files (``.toml``) and transformations, joined by commas. ``@3`` after a name fixes the
    severity, ``@1..5`` takes each of these."""
    canvas: Annotated[StrictInt, Field(ge=32, le=1024, multiple_of=4)] = 224
    """Side of the canvas in pixels."""
    orientation: Orientation = "ignore"
    """EXIF orientations: ``ignore``, as timm and open_clip load images, or ``apply``."""
    style_precision: Precision = "bf16"
    """Arithmetic of style networks. It changes pixels of variants by one or two levels."""
    crop_pct: CropPct = CROP_PCT
    """Part of the shorter side of a photograph that the canvas shows, as in timm; 1 cuts nothing but the longer
    side."""
    limit: Annotated[StrictInt, Field(ge=0)] = 0
    """Maximum number of photographs; 0 uses all."""
    plugins: tuple[LocalPath, ...] = ()
    """Python files that register transformations, backbone families, kinds of sources or stages."""
    gallery: Annotated[StrictInt, Field(ge=0, le=4)] = 3
    """Number of photographs shown in the report in all variants, fewer with more than 120 pictures; 0 shows no
    photographs at all."""
    splits: SplitConfig = field(default_factory=SplitConfig)
    """Fractions of train, validation and test."""
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    """Settings of the embedding stage."""
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    """Processes that embed shards."""
    probes: ProbeConfig = field(default_factory=ProbeConfig)
    """Settings of probes."""
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    """Settings of the analysis."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """Experiment tracker."""
    shift: dict[str, PathOrAddress] = field(default_factory=dict)
    """Other photographs of the same classes, by name: folders or any other source."""
    corruptions: str = ""
    """Suite, such as ``imagenet_c@3``, in which test photographs are embedded as a further shift."""
    domains: dict[str, PathOrAddress] = field(default_factory=dict)
    """Photographs of other domains, by name. Each is embedded in all transformations; linear probes of every domain are
    scored on every other."""
    stages: dict[str, Any] = field(default_factory=dict)
    """Settings of further stages, by name. In a study file each is a table of its own: ``[<stage>]``."""

    def __post_init__(self) -> None:
        labels_of(self.backbones)
        for name in ("embed", "probes", "analysis"):
            object.__setattr__(self, name, with_shared(getattr(self, name), self, name))
        stages = {name: with_shared(table, self, name) for name, table in self.stages.items()}
        object.__setattr__(self, "stages", stages)

    def settings(self) -> Settings:
        """Load the plug-ins and return the settings of variants. Raises ConfigError for an unknown suite."""
        from substyle.pipelines.transforms.registry import load_plugin, suite

        for plugin in self.plugins:
            load_plugin(plugin)
        return Settings(transformations=suite(self.suite), **{name: getattr(self, name) for name in PIXELS})
