"""What a stage of a study is, and what it reads."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar, Generic, TypeVar

import torch

from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.base_config import with_shared
from substyle.engine.config import BackboneChoice, Settings, Study
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.preflight import SplitCounts
from substyle.engine.embedding.prepare import PixelPipeline, prepare_backbones
from substyle.engine.results.model import ResultsDocument
from substyle.engine.store import catalog
from substyle.engine.store.files import read_object, write_durably
from substyle.engine.store.layout import BackboneEntry, Fractions
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, open_table
from substyle.pipelines.sources import Source

JSON = dict[str, Any]
C = TypeVar("C")  # settings, a dataclass
R = TypeVar("R")  # results of a unit
T = TypeVar("T")


@dataclass(frozen=True)
class Unit:
    """Results that are computed, kept and dated as one.

    Attributes:
        name: the backbone that they are about; empty for results of all backbones together.
        folder: their folder below the stage's; empty for the stage's own.
        variant: which of several results of the backbone they are.
    """

    name: str = ""
    folder: str = ""
    variant: tuple[Any, ...] = ()

    @property
    def key(self) -> str:
        """Key of the results in a run: the backbone, and which of its results they are."""
        return " ".join((self.name, *map(str, self.variant)))


@dataclass(frozen=True)
class Elsewhere:
    """Other photographs, which are embedded by the backbones of a study in a store of their own.

    Attributes:
        title: what they are, for messages.
        photographs: where they are; None: the study's own test photographs.
        path: path of the store.
        settings: their transformations.
        limit: maximum number of photographs; 0 uses all.
        fractions: fractions of the splits; None: the default.
    """

    title: str
    photographs: Path | str | None
    path: Path
    settings: Settings
    limit: int = 0
    fractions: Fractions | None = None


@dataclass(frozen=True)
class Embedding:
    """How the photographs of a run are embedded, for stages that embed others by the same backbones.

    Attributes:
        plan: plan of the photographs.
        choices: backbones of the study, and networks that stages have added.
        derived: names of added backbones whose embeddings are derived from those of others.
    """

    plan: EmbedPlan
    choices: Sequence[BackboneChoice]
    derived: Sequence[str] = ()
    quiet: bool = False

    @cached_property
    def compiled(self) -> Sequence[CompiledBackbone]:
        """The compiled backbones."""
        return prepare_backbones(self.choices, self.plan.samples(), quiet=self.quiet)

    def release(self) -> None:
        """Free networks, decoder and variant makers; they are created again when needed."""
        self.__dict__.pop("compiled", None)
        self.plan.pipeline.release()


@dataclass
class Run:
    """What stages read: embeddings, settings and the results of earlier stages.

    Attributes:
        store: the embeddings.
        out: folder of the results.
        tables: embeddings by backbone over common photographs and transformations, also of backbones that stages have
            added.
        study: the study; None: results are loaded with the settings that they were computed with.
        configs: settings by stage, in place of the study's.
        embedding: how to embed other photographs; None where nothing is embedded.
        source: the photographs; None: those that the store names.
        checkpoints: local weights by backbone.
        results: results by stage and key of the unit, of stages that have finished.
        outdated: units of the stage that is being computed, whose results are missing or outdated.
        recomputed: names of stages all of whose results were computed, none loaded.
        folders: folders of the results of stages, by name.
        quiet: hide progress.
    """

    store: EmbeddingStore
    out: Path
    tables: Mapping[str, EmbeddingTable]
    study: Study | None = None
    configs: Mapping[str, Any] = field(default_factory=dict)
    embedding: Embedding | None = None
    source: Source | None = None
    checkpoints: Mapping[str, Path | None] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    outdated: Sequence[Unit] = ()
    recomputed: set[str] = field(default_factory=set)
    folders: dict[str, list[Path]] = field(default_factory=dict)
    quiet: bool = False
    _once: dict[Hashable, Any] = field(default_factory=dict)

    def begin(self, stage: str) -> None:
        """Forget what units of a stage have shared: its inputs may have changed since."""
        for key in [key for key in self._once if key == stage or (isinstance(key, tuple) and key[:1] == (stage,))]:
            del self._once[key]

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what ``make`` returned first for a key, such as what all units of a stage read.

        A key that is the name of a stage, or a tuple that starts with it, lasts for one computation of the stage.
        """
        if key not in self._once:
            self._once[key] = make()
        found: T = self._once[key]
        return found

    def stores(self, paths: Mapping[str, Path]) -> dict[str, EmbeddingStore]:
        """Open stores of other photographs, as they are when first asked for; those that do not exist are left out."""
        there = {name: path for name, path in paths.items() if catalog.exists(path)}
        return {name: self.once(path, partial(EmbeddingStore.open, path)) for name, path in there.items()}

    def opened(self, store: EmbeddingStore) -> dict[str, EmbeddingTable]:
        """Tables of the backbones of the run in a store of other photographs, opened once.

        Each has all of its photographs, as its stamp has: results of a backbone do not depend on the others.
        """
        return {
            name: self.once((store.path, name), partial(open_table, store, name, own.transformations))
            for name, own in self.tables.items()
        }


class Stage(ABC, Generic[C, R]):
    """A stage: settings, units, what they are computed from, computation and results.

    `execution.computed` computes results of units that are missing or outdated and keeps them in
    ``<out>/<stage>/<unit>`` with a `Stamp` of all inputs; `execution.kept` loads them and refuses outdated ones.

    Attributes:
        name: field of `Study`, folder of the results, and key in results.json.
        version: increment when the same inputs give other numbers; earlier results are then outdated.
        config: class of the settings. Where these have paths, a method ``below(folder)`` returns settings whose paths
            are relative to the folder of the study file. A field ``backbones`` names the backbones that have results.
            Fields ``seed``, ``resample_by``, ``bootstrap``, ``device`` and ``threads`` have the study's values.
        switch: the field of the settings that turns the stage off where it is empty or 0. A study without the stage's
            table then has default settings; without a switch, the table turns the stage on.
        on_demand: settings in place of empty ones, where this stage alone is computed.
        ignored: settings that do not change the results of a unit.
        directory: name of the folder of the results, if it is not that of the stage.
        alike: whether reported results of all units must have the same settings.
        together: whether there is one result, which compares all backbones.
        any_order: whether results do not depend on the order of the transformations.
        at_once: returns the device of the settings, if several units may be computed at the same time, each in another
            process. `compute` then sees the embeddings of the unit's backbone alone, no study, and no results of other
            stages. None: one after another.
        of_store: whether a store and results of other stages suffice: it embeds no photographs, nor adds backbones.
        photographs: whether it reads the photographs of a store.
        in_reports: whether reports compute missing results, too.
        backbone_results: type of the entry ``backbones.<backbone>.<name>`` of results.json, such as a pydantic model:
            what reads it gets that type, its JSON Schema has it, and other values are refused by name. None: any JSON.
        document_results: type of the entry ``<name>``, of all backbones together.
        reads: stages whose results (`Run.results`) it needs.
        report: what has functions ``sections(results)``, which makes sections of the report, and ``scores(backbone)``,
            which returns the fractions that `substyle compare` compares between runs, such as a module. None: the stage
            itself; both may be missing.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    config: type[C]
    switch: ClassVar[str] = ""
    on_demand: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    ignored: ClassVar[tuple[str, ...]] = ()
    directory: ClassVar[str] = ""
    alike: ClassVar[bool] = False
    together: ClassVar[bool] = False
    any_order: ClassVar[bool] = False
    at_once: Callable[[Any], torch.device] | None = None
    of_store: ClassVar[bool] = True
    photographs: ClassVar[bool] = False
    in_reports: ClassVar[bool] = False
    backbone_results: ClassVar[Any] = None
    document_results: ClassVar[Any] = None
    reads: ClassVar[tuple[str, ...]] = ()
    report: ModuleType | None = None

    def of(self, study: Study) -> C | None:
        """The settings of a study; None if the stage is off."""
        if not self.switch:
            found: C | None = getattr(study, self.name, None) or study.stages.get(self.name)
            return found
        config = table_of(self, study)
        return config if getattr(config, self.switch) else None

    def units(self, run: Run, config: C) -> Iterable[Unit]:
        """What to compute; by default each backbone.

        Raises:
            ConfigError: the settings do not fit the backbones.
        """
        return each_backbone(run)

    def inputs(self, run: Run, config: C, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
        """What results are computed from besides embeddings and settings, such as digests of probes.

        Args:
            before: what was stored, if results are loaded.
        """
        return {}

    def stated(self, stored: Mapping[str, Any]) -> JSON:
        """The settings that results.json states, without paths: runs are compared by them.

        Args:
            stored: settings and inputs of results, as they are stored.
        """
        names = [*(each.name for each in fields(self.config)), "plugin"]  # type: ignore[arg-type]
        return {name: stored[name] for name in names if name in stored}

    def check(self, study: Study, counts: SplitCounts) -> list[str]:
        """Check a study before anything is computed. Returns warnings.

        Raises:
            ConfigError: the stage would fail.
        """
        return []

    @abstractmethod
    def compute(self, run: Run, config: C, unit: Unit, folder: Path) -> bool | None:
        """Write the results of a unit into an empty folder.

        Returns:
            False if they are incomplete: they are shown, and computed again by the next run.
        """

    @abstractmethod
    def load(self, run: Run, folder: Path) -> R:
        """Load the results of a unit."""

    def lines(self, result: R) -> Iterable[str]:
        """Main numbers of a unit for a terminal: by default numbers of at most two names."""
        for name, value in entry_of(self, result).items():
            for inner, number in value.items() if isinstance(value, Mapping) else (("", value),):
                if isinstance(number, int | float):
                    yield f"{name}  {inner}  {number:.4g}" if inner else f"{name}  {number:.4g}"

    def of_backbone(self, result: R) -> Mapping[str, Any]:
        """Entries of a backbone in results.json."""
        return {self.name: result} if result else {}

    def of_document(self, run: Run, document: ResultsDocument) -> Mapping[str, Any]:
        """Further entries of results.json.

        Args:
            document: the other entries.
        """
        return {}


def table_of(stage: Stage[C, Any], study: Study) -> C:
    """The settings of a stage's table in a study, or without one default settings."""
    return study.stages.get(stage.name) or with_shared(stage.config(), study, stage.name)


def entry_of(stage: Stage[Any, R], result: R) -> Mapping[str, Any]:
    """The results of a unit, as results.json has them."""
    entries = stage.of_backbone(result)
    own = entries.get(stage.name)
    return own if isinstance(own, Mapping) else entries


def each_backbone(run: Run) -> list[Unit]:
    """A unit for each backbone."""
    return [Unit(name, run.store.backbone(name).slug) for name in run.tables]


class EmbeddingStage(Stage[C, R]):
    """A stage of a study that runs networks on photographs."""

    of_store = False

    def check_networks(self, study: Study, pipeline: PixelPipeline, stored: Collection[str]) -> None:
        """Load the networks with which the stage would fail after hours of embedding.

        Args:
            stored: backbones of the study that have embeddings already.
        """

    def prepare(self, run: Run, config: C) -> None:
        """Do what precedes the check for outdated results, such as embedding other photographs."""


class TrainingStage(EmbeddingStage[C, str]):
    """A stage that trains backbones, which a study embeds before later stages.

    Results are the names of the backbones, ``<prefix><file>``.

    Attributes:
        prefix: prefix of the names.
    """

    prefix: ClassVar[str]

    @abstractmethod
    def added(self, run: Run, found: Mapping[str, str]) -> Sequence[BackboneChoice]:
        """Backbones to embed before later stages.

        Args:
            found: results by key of the unit.
        """

    @abstractmethod
    def replaced(self, run: Run, found: Mapping[str, str]) -> Iterable[BackboneEntry]:
        """Backbones of the store that `added` ones replace; their results are deleted when these are embedded."""

    def load(self, run: Run, folder: Path) -> str:
        """The name of the trained backbone."""
        (path,) = folder.glob("*.safetensors")
        return f"{self.prefix}{os.path.relpath(path)}"

    def lines(self, result: str) -> Iterable[str]:
        """The name of the trained backbone."""
        yield result


class JsonStage(Stage[C, JSON]):
    """A stage whose results are one JSON object.

    Attributes:
        file: name of their file, if it is not ``<name>.json``.
    """

    file: ClassVar[str] = ""

    def write(self, folder: Path, found: Mapping[str, Any]) -> None:
        """Write the results."""
        write_durably(self._path(folder), json.dumps(found, allow_nan=False).encode())

    def load(self, run: Run, folder: Path) -> JSON:
        """Load the results."""
        return read_object(self._path(folder))

    def _path(self, folder: Path) -> Path:
        return folder / (self.file or f"{self.name}.json")
