"""A study: everything that decides a run, read from a TOML file into typed fields."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from substyle.engine.analysis.config import AnalysisConfig
from substyle.engine.embed_config import BackboneChoice, EmbedConfig, Settings
from substyle.engine.executors.config import ExecutorConfig
from substyle.engine.precision import as_precision
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.schema import build
from substyle.engine.store.splits import DEFAULT_FRACTIONS, Fractions
from substyle.kernels.errors import ConfigError
from substyle.pipelines.orientation import ORIENTATIONS
from substyle.pipelines.places import below
from substyle.pipelines.plugins import load_plugin
from substyle.pipelines.sources import SourceConfig
from substyle.pipelines.suites import suite


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
