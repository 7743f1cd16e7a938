"""Configuration of a study, read from a TOML file into typed fields."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, Field, StrictFloat, StrictInt, TypeAdapter

from substyle.engine import devices
from substyle.engine.devices import AUTO, EightBits, Precision, graph_batch
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.store.layout import Dtype, ResampleBy
from substyle.engine.store.manifest import DEFAULT_FRACTIONS, Fractions
from substyle.kernels.errors import ConfigError
from substyle.pipelines.image_header import Orientation
from substyle.pipelines.sources import SourceConfig
from substyle.pipelines.storage import below
from substyle.pipelines.transforms.registry import load_plugin, suite
from substyle.pipelines.validation import Distinct, LocalPath, PathOrAddress, PowerOfTwo, require_bounded, validated

# How much of a store the analysis looks at, and with what seed.


def _ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError("ascending whole numbers")
    return values


@validated("analysis")
class AnalysisConfig:
    """Settings of the analysis. Raises ConfigError("analysis.<field>", ...)."""

    max_queries: Annotated[StrictInt, Field(ge=1)] = 5_000
    """Most variants of test photographs that are used as queries (whole photographs are drawn)."""
    max_bank: Annotated[StrictInt, Field(ge=1)] = 100_000
    """Most variants of training photographs that are searched in."""
    max_images: Annotated[StrictInt, Field(ge=2)] = 2_000
    """Most photographs of each split that the geometry looks at."""
    ks: Annotated[Distinct[Annotated[StrictInt, Field(ge=1, le=2048)]], AfterValidator(_ascending)] = (1, 5, 10, 50)
    """Numbers of neighbours of the k-NN classifier, ascending."""
    resample_by: ResampleBy = "photograph"
    """What bootstraps draw; left out, it is the study's."""
    seed: Annotated[StrictInt, Field(ge=0)] = 0
    """Picks the samples, the bootstrap and the start of k-means; left out, it is the study's."""
    threads: Annotated[StrictInt, Field(ge=0)] = 0
    """CPU threads; 0 leaves the libraries' own setting."""


# How embeddings are computed.

BATCH, GPU_BATCH = 32, 256  # of images, where no batch is given


_BEHIND = 2  # executions that wait on a stream behind the one that runs, so that it never waits for the host


BackbonePrecision = Literal["auto", Precision, EightBits]


@validated("embed")
class EmbedConfig:
    """How embeddings are computed."""

    batch: Annotated[StrictInt, Field(ge=1, le=4096)] | None = None
    """Images in one run of a network; left out: 32 on a CPU, 256 on a GPU."""
    threads: Annotated[StrictInt, Field(ge=0)] = 0
    """CPU threads; 0 takes all there are."""
    device: str = AUTO
    """Where photographs are decoded, varied and embedded: cpu, cuda or cuda:N; ``auto``, which is the first GPU that
    torch sees, else the CPU."""
    runtime: Annotated[str, Field(json_schema_extra={"enum": [AUTO, *devices.RUNTIMES]})] = AUTO
    """Of compiled backbones: openvino or torch on a CPU, tensorrt or torch on a GPU; ``auto``, which is the first of
    these that is installed."""
    precision: BackbonePrecision = "auto"
    """Arithmetic of compiled backbones: bf16, fp16, fp32; ``auto``, which in OpenVINO is bf16 with as many of a
    backbone's first layers in float32 as its gate asks for, elsewhere the first of bf16, fp16, fp32 that passes it; or
    int8 (OpenVINO, TensorRT) or fp8 (TensorRT), quantised on photographs of the source."""
    dtype: Dtype = "float16"
    """Type of stored embeddings."""
    shard_rows: Annotated[StrictInt, Field(ge=0), PowerOfTwo] = 0
    """Images in a unit of work, a power of two; 0 chooses one that takes under two minutes."""

    def __post_init__(self) -> None:
        devices.check(self.device, self.runtime, "embed.")
        devices.require_precision(self.runtime, "embed.precision", self.precision)

    @property
    def cores(self) -> int:
        """Threads to use: as given, else the CPUs this process may run on."""
        return self.threads or len(os.sched_getaffinity(0))

    def here(self, shard_rows: int = 0) -> EmbedConfig:
        """The same with device and runtime as this machine has them. Raises ConfigError where they are not available.

        Args:
            shard_rows: R of the store where there is one. Batches begin at shards: on a GPU, whose graphs take whole
                batches, a batch that is not given is no larger than a shard.
        """
        found = devices.resolve(self.device, self.runtime, "embed.")
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
    orientation: Orientation = "ignore"
    style_precision: Precision = "bf16"


@validated("backbone")
class BackboneChoice:
    """A backbone as the user asks for it: a name, and where its weights or precision differ from the default."""

    name: str
    """Such as ``mae:base`` or ``timm:vit_base_patch16_224.mae``; ``substyle backbones`` lists them."""
    checkpoint: LocalPath | None = None
    """A local file with its weights."""
    precision: BackbonePrecision | None = None
    """Instead of ``embed.precision``."""


# Where shards are embedded, as a study or the command line says.

LOCAL, RAY = "local", "ray"
_CPU_OR_GPU = (AUTO, "cpu", "cuda")


@validated("executor")
class ExecutorConfig:
    """Where shards are embedded."""

    kind: Literal["local", "ray"] = "local"
    """``local``: in this process; ``ray``: by workers of a Ray cluster, each of which has a GPU or, on CPUs,
    ``embed.threads`` cores to itself."""
    address: str = ""
    """Of a Ray cluster that runs, ``host:port``, or ``auto`` for the one of this machine; left out, it is $RAY_ADDRESS,
    and without that a Ray of this run's own, on this machine alone."""
    workers: Annotated[StrictInt, Field(ge=0, le=65536)] = 0
    """How many; 0: as many as there is room for."""
    retries: Annotated[StrictInt, Field(ge=0, le=100)] = 2
    """How often a shard is given out again, to another worker where there is one, after its worker has died or
    failed."""

    def __post_init__(self) -> None:
        if self.kind == LOCAL and (self.address or self.workers):
            name = "address" if self.address else "workers"
            raise ConfigError(f"executor.{name}", getattr(self, name), f'only with executor.kind = "{RAY}"')
        if "://" in self.address:
            raise ConfigError("executor.address", self.address, "auto or host:port, as `ray start` prints it")

    @property
    def joins(self) -> str:
        """Address of the cluster to join; empty for a Ray of one's own."""
        address = self.address or os.environ.get("RAY_ADDRESS", "")
        return "" if address == "local" else address

    def here(self, config: EmbedConfig, shard_rows: int = 0) -> EmbedConfig:
        """`EmbedConfig.here` for this executor: with Ray, threads are those of one worker.

        Raises:
            ConfigError: what is asked for is not there.
        """
        if self.kind == LOCAL:
            return config.here(shard_rows)
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("executor.kind", RAY, f"{LOCAL}; ray is not installed: it comes with the extra ray")
        if config.device not in _CPU_OR_GPU:
            raise ConfigError("embed.device", config.device, f"{', '.join(_CPU_OR_GPU)} with Ray, which chooses GPUs")
        found = config.here(shard_rows)
        return dataclasses.replace(found, threads=config.threads or self._share(found))

    def _share(self, config: EmbedConfig) -> int:
        """Cores of a worker where none are asked for: each of this machine's workers has as many."""
        here = 1 if self.joins else self.workers
        workers = torch.cuda.device_count() if config.on_gpu else here
        return max(config.cores // max(workers, 1), 1)


HERE = ExecutorConfig()


Share = Annotated[StrictFloat, Field(gt=0, lt=1)]


@validated("splits")
class SplitConfig:
    """Shares of train, validation and test for images whose source has no splits of its own; they add up to 1."""

    train: Share = DEFAULT_FRACTIONS[0]
    """Share of images that probes are trained on."""
    val: Share = DEFAULT_FRACTIONS[1]
    """Share of images that settings are picked on."""
    test: Share = DEFAULT_FRACTIONS[2]
    """Share of images that results are measured on."""

    def __post_init__(self) -> None:
        if abs(sum(self.fractions) - 1.0) > 1e-6:
            raise ConfigError("splits", list(self.fractions), "shares that add up to 1")

    @property
    def fractions(self) -> Fractions:
        """(train, val, test)."""
        return self.train, self.val, self.test


def _by_name(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _or_names(schema: dict[str, Any]) -> None:
    schema["items"] = {"anyOf": [{"type": "string"}, schema["items"]]}


@validated()
class Study:
    """A whole study."""

    name: str
    """What the report calls it."""
    backbones: Annotated[
        tuple[Annotated[BackboneChoice, BeforeValidator(_by_name)], ...],
        Field(min_length=1, json_schema_extra=_or_names),
    ]
    """At least one: a name, or a table with name, checkpoint, precision."""
    images: PathOrAddress | None = None
    """Photographs: a folder, a list, tar shards, Parquet files, or a pattern of such files; may be given on the command
    line instead."""
    store: PathOrAddress | None = None
    """Where embeddings go, a path or an address such as ``s3://bucket/photographs.zarr``; left out, it is
    ``store.zarr`` in the folder of results."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """How to open the photographs, where that is not plain from what is there."""
    suite: str = "substance31"
    """A suite's name or transformation names separated by commas."""
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    """Seed of variants, splits, probes and samples."""
    resample_by: ResampleBy = "photograph"
    """What bootstraps draw: photographs, or whole folders where photographs of one folder are not independent (crops
    of one picture, frames of one video)."""
    canvas: Annotated[StrictInt, Field(ge=32, le=1024, multiple_of=4)] = 224
    """Side of the canvas in pixels."""
    orientation: Orientation = "ignore"
    """EXIF orientations: ``ignore``, as timm and open_clip load images, or ``apply``."""
    style_precision: Precision = "bf16"
    """Arithmetic inside style networks. It changes variants, by a level or two."""
    limit: Annotated[StrictInt, Field(ge=0)] = 0
    """Take only so many photographs; 0 takes all."""
    plugins: tuple[LocalPath, ...] = ()
    """Python files that register more transformations or families of backbones."""
    gallery: Annotated[StrictInt, Field(ge=0, le=4)] = 3
    """Photographs shown in the report."""
    splits: SplitConfig = field(default_factory=SplitConfig)
    """Shares of train, validation and test."""
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    """How embeddings are computed."""
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    """Where shards are embedded."""
    probes: ProbeConfig = field(default_factory=ProbeConfig)
    """What probes are trained and how."""
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    """How much of the store the analysis looks at."""
    shift: dict[str, PathOrAddress] = field(default_factory=dict)
    """Further photographs of the same classes, by name: folders or what else images may be."""

    def settings(self) -> Settings:
        """What images and variants depend on; loads the plug-ins first. Raises ConfigError for an unknown suite."""
        for plugin in self.plugins:
            load_plugin(plugin)
        return Settings(self.seed, self.canvas, suite(self.suite), self.orientation, self.style_precision)


def load_study(path: Path, *, device: str | None = None, runtime: str | None = None) -> Study:
    """Read a study file. Paths in it are relative to its folder.

    Args:
        path: the file.
        device: where all of it is to run, instead of ``embed.device``; probes train there too, unless the file says
            where they do.
        runtime: instead of ``embed.runtime``.

    Raises:
        ConfigError: no such file, no TOML, or a field that is not allowed.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("study", str(path), f"a study file that can be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError; so is a number of too many digits
        raise ConfigError("study", str(path), f"a TOML file ({error})") from error
    study = study_of(data, device=device, runtime=runtime)
    folder, source = path.parent, study.source
    choices = tuple(
        dataclasses.replace(c, checkpoint=folder / c.checkpoint) if c.checkpoint else c for c in study.backbones
    )
    return dataclasses.replace(
        study,
        backbones=choices,
        images=below(folder, study.images, "images") if study.images else None,
        store=below(folder, study.store, "store") if study.store else None,
        source=dataclasses.replace(
            source,
            synsets=folder / source.synsets if source.synsets else None,
            names=folder / source.names if source.names else None,
        ),
        plugins=tuple(folder / plugin for plugin in study.plugins),
        shift={name: below(folder, there, f"shift.{name}") for name, there in study.shift.items()},
    )


def study_of(data: dict[str, Any], *, device: str | None = None, runtime: str | None = None) -> Study:
    """Make a study from what a file would hold. Relative paths stay as they are.

    Args:
        data: fields of `Study`, as TOML gives them.
        device, runtime: as in `load_study`.

    Raises:
        ConfigError: a field that is not allowed.
    """
    require_bounded(data)
    return Study(**_placed(_shared(data), device, runtime))


def study_schema() -> dict[str, Any]:
    """The JSON Schema of a study file. It is of draft 7, which editors of TOML know."""
    return {"$schema": "http://json-schema.org/draft-07/schema#", **TypeAdapter(Study).json_schema()}


def _shared(data: dict[str, Any]) -> dict[str, Any]:
    """Probes and analysis take these settings of the study unless they have their own."""
    settings = {name: data[name] for name in ("seed", "resample_by") if name in data}
    shared = dict(data)
    for part in ("probes", "analysis"):
        table = data.get(part, {})
        if isinstance(table, dict) and settings:
            shared[part] = {**settings, **table}
    return shared


def _placed(data: dict[str, Any], device: str | None, runtime: str | None) -> dict[str, Any]:
    """Embedding there, probes on the same device unless they have one of their own; what is no table is refused later.

    Both are set at once: what the file says of one may not go with what is asked for of the other.
    """
    asked = {name: value for name, value in (("device", device), ("runtime", runtime)) if value is not None}
    embed, probes, placed = data.get("embed", {}), data.get("probes", {}), dict(data)
    if asked and isinstance(embed, dict):
        placed["embed"] = {**embed, **asked}
    if device is not None and isinstance(probes, dict):
        placed["probes"] = {"device": device, **probes}
    return placed
