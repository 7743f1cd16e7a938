"""Configuration of a study, read from a TOML file into typed fields."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from substyle.engine import devices
from substyle.engine.devices import AUTO, Precision, as_precision, check_precision, graph_batch
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.store.layout import DTYPES
from substyle.engine.store.manifest import DEFAULT_FRACTIONS, Fractions
from substyle.kernels.errors import ConfigError
from substyle.pipelines.image_header import ORIENTATIONS
from substyle.pipelines.schema import build
from substyle.pipelines.sources import SourceConfig
from substyle.pipelines.storage import below
from substyle.pipelines.transforms.registry import load_plugin, suite

# How much of a store the analysis looks at, and with what seed.


@dataclass(frozen=True)
class AnalysisConfig:
    """Settings of :func:`substyle.engine.analysis.run.analyze`. Raises ConfigError("analysis.<field>", ...).

    Attributes:
        max_queries: most variants of test photographs that are used as queries (whole photographs are drawn).
        max_bank: most variants of training photographs that are searched in.
        max_images: most photographs of each split that the geometry looks at.
        ks: numbers of neighbours of the k-NN classifier.
        seed: picks the samples, the bootstrap and the start of k-means.
        threads: CPU threads; 0 leaves the libraries' own setting.
    """

    max_queries: int = 5_000
    max_bank: int = 100_000
    max_images: int = 2_000
    ks: tuple[int, ...] = (1, 5, 10, 50)
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        at_least = {"max_queries": 1, "max_bank": 1, "max_images": 2, "seed": 0, "threads": 0}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "ks":
                good = isinstance(value, tuple) and value and all(_is_int(k) and 1 <= k <= 2048 for k in value)
                if not good or list(value) != sorted(set(value)):
                    raise ConfigError("analysis.ks", value, "ascending whole numbers from 1 to 2048, at least one")
            elif not _is_int(value) or value < at_least[each.name]:
                raise ConfigError(f"analysis.{each.name}", value, f"a whole number, at least {at_least[each.name]}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# x

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
        devices.check(self.device, self.runtime, "embed.")
        devices.require_precision(self.runtime, "embed.precision", self.precision)
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
    orientation: str = "ignore"
    style_precision: Precision = "bf16"


@dataclass(frozen=True)
class BackboneChoice:
    """A backbone as the user asks for it: a name, and where its weights or precision differ from the default."""

    name: str
    checkpoint: Path | None = None
    precision: str | None = None


# Where shards are embedded, as a study or the command line says.

LOCAL, RAY = "local", "ray"
KINDS = (LOCAL, RAY)
_CPU_OR_GPU = (AUTO, "cpu", "cuda")


@dataclass(frozen=True)
class ExecutorConfig:
    """Where shards are embedded.

    Attributes:
        kind: ``local``: in this process; ``ray``: by workers of a Ray cluster, each of which has a GPU or, on CPUs,
            ``embed.threads`` cores to itself.
        address: of a Ray cluster that runs, ``host:port``, or ``auto`` for the one of this machine; left out, it is
            $RAY_ADDRESS, and without that a Ray of this run's own, on this machine alone.
        workers: how many; 0: as many as there is room for.
        retries: how often a shard is given out again, to another worker where there is one, after its worker has died
            or failed.
    """

    kind: str = LOCAL
    address: str = ""
    workers: int = 0
    retries: int = 2

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError("executor.kind", self.kind, ", ".join(KINDS))
        if not 0 <= self.workers <= 65536:
            raise ConfigError("executor.workers", self.workers, "0 (as many as there is room for) to 65536")
        if not 0 <= self.retries <= 100:
            raise ConfigError("executor.retries", self.retries, "0 to 100")
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


@dataclass(frozen=True)
class SplitConfig:
    """Shares of train, validation and test for images whose source has no splits of its own."""

    train: float = DEFAULT_FRACTIONS[0]
    val: float = DEFAULT_FRACTIONS[1]
    test: float = DEFAULT_FRACTIONS[2]

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0.0 < value < 1.0:
                raise ConfigError(f"splits.{name}", value, "a number between 0 and 1")
        if abs(sum(self.fractions) - 1.0) > 1e-6:
            raise ConfigError("splits", list(self.fractions), "shares that add up to 1")

    @property
    def fractions(self) -> Fractions:
        """(train, val, test)."""
        return self.train, self.val, self.test


@dataclass(frozen=True)
class Study:
    """A whole study.

    Attributes:
        name: what the report calls it.
        backbones: at least one; in the file a name, or a table with name, checkpoint, precision.
        images: photographs: a folder, a list, tar shards, Parquet files, or a pattern of such files; may be given on
            the command line instead.
        store: where embeddings go, a path or an address such as ``s3://bucket/photographs.zarr``; None takes
            ``store.zarr`` in the folder of results.
        source: how to open them, where that is not plain from what is there.
        suite: a suite's name or transformation names separated by commas.
        seed: of variants, splits, probes and samples.
        canvas: canvas side S in pixels.
        orientation: EXIF orientations: ``ignore``, as timm and open_clip load images, or ``apply``.
        style_precision: arithmetic inside style networks: bf16, fp16 or fp32. It changes variants, by a level or two.
        limit: take only so many photographs; 0 takes all.
        plugins: Python files that register more transformations or families of backbones.
        gallery: photographs shown in the report.
        splits, embed, executor, probes, analysis: see their classes.
        shift: further photographs of the same classes, by name: folders or what else images may be.
    """

    name: str
    backbones: tuple[BackboneChoice, ...]
    images: Path | str | None = None
    store: Path | str | None = None
    source: SourceConfig = field(default_factory=SourceConfig)
    suite: str = "substance31"
    seed: int = 0
    canvas: int = 224
    orientation: str = "ignore"
    style_precision: str = "bf16"
    limit: int = 0
    plugins: tuple[Path, ...] = ()
    gallery: int = 3
    splits: SplitConfig = field(default_factory=SplitConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    probes: ProbeConfig = field(default_factory=ProbeConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    shift: dict[str, Path | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.backbones:
            raise ConfigError("backbones", [], "at least one backbone")
        if not 0 <= self.seed < 2**63:
            raise ConfigError("seed", self.seed, "a whole number from 0 to 2^63 - 1")
        if not 32 <= self.canvas <= 1024 or self.canvas % 4:
            raise ConfigError("canvas", self.canvas, "a multiple of 4 from 32 to 1024 pixels")
        if self.orientation not in ORIENTATIONS:
            raise ConfigError("orientation", self.orientation, ", ".join(ORIENTATIONS))
        as_precision(self.style_precision, "style_precision")
        if self.limit < 0:
            raise ConfigError("limit", self.limit, "0 (all) or more")
        if not 0 <= self.gallery <= 4:
            raise ConfigError("gallery", self.gallery, "0 to 4 photographs")

    def settings(self) -> Settings:
        """What images and variants depend on; loads the plug-ins first. Raises ConfigError for an unknown suite."""
        for plugin in self.plugins:
            load_plugin(plugin)
        precision = as_precision(self.style_precision)
        return Settings(self.seed, self.canvas, suite(self.suite), self.orientation, precision)


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
    return build(Study, _placed(_seeded(data), device, runtime))


def _seeded(data: dict[str, Any]) -> dict[str, Any]:
    """Probes and analysis take the study's seed unless they have one of their own."""
    seeded = dict(data)
    for part in ("probes", "analysis"):
        table = data.get(part, {})
        if isinstance(table, dict) and "seed" in data:
            seeded[part] = {"seed": data["seed"], **table}
    return seeded


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
