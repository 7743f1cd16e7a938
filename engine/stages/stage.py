"""What a stage of a study is: it computes results unit by unit, keeps them, and loads those that are up to date."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, ClassVar, Generic, TypeVar

import torch

from substyle.engine import devices
from substyle.engine.backbones.compile import CompiledBackbone
from substyle.engine.config import BackboneChoice, Settings, Study
from substyle.engine.embedding.plan import EmbedPlan
from substyle.engine.embedding.preflight import SplitCounts
from substyle.engine.embedding.prepare import PixelPipeline, prepare_backbones
from substyle.engine.report.data import ComparedScore
from substyle.engine.report.section import Section
from substyle.engine.results.model import BackboneResults, ResultsDocument
from substyle.engine.stages import at_once
from substyle.engine.stages.at_once import Places, Work
from substyle.engine.stages.stamp import StaleError, Stamp, compute_into, fits, note_of, require_fresh
from substyle.engine.store import catalog
from substyle.engine.store.files import read_object, write_durably
from substyle.engine.store.layout import BackboneEntry, Fractions
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, open_table
from substyle.kernels.errors import SubstyleError
from substyle.pipelines.plugins import PACKAGE, files_digest
from substyle.pipelines.sources import Source
from substyle.pipelines.transforms.style import generator_of

JSON = dict[str, Any]
C = TypeVar("C")  # settings, a dataclass
R = TypeVar("R")  # results of a unit
T = TypeVar("T")
_KNOWN = (PACKAGE, "abc", "builtins", "typing")  # modules whose classes are not of a plug-in


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
        recomputed: names of stages all of whose results were computed, none loaded.
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
    recomputed: set[str] = field(default_factory=set)
    quiet: bool = False
    _once: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what ``make`` returned first for a key, such as what all units of a stage read."""
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

    Results of a unit are kept in ``<out>/<stage>/<unit>`` with a `Stamp` of all inputs. `computed` computes those that
    are missing or outdated, `kept` loads them and refuses outdated ones.

    Attributes:
        name: field of `Study`, folder of the results, and key in results.json.
        version: increment when the same inputs give other numbers; earlier results are then outdated.
        config: class of the settings.
        switch: the field of the settings that turns the stage off where it is empty or 0. A study without the stage's
            table then has default settings; without a switch, the table turns the stage on.
        directory: name of the folder of the results, if it is not that of the stage.
        adds_backbones: whether it trains backbones that a study embeds before later stages, see `added`.
        alike: whether reported results of all units must have the same settings.
        at_once: whether several units may be computed at the same time, each in another process. `compute` then sees
            the embeddings of the unit's backbone alone, no study, no results of other stages, and nothing `shared`.
        photographs: whether it reads the photographs of a store.
        in_reports: whether reports compute missing results, too.
        backbone_results: type of the entry ``backbones.<backbone>.<name>`` of results.json, such as a pydantic model:
            what reads it gets that type, its JSON Schema has it, and other values are refused by name. None: any JSON.
        document_results: type of the entry ``<name>``, of all backbones together.
        reads: stages whose results (`Run.results`) it needs.
        report: module with a function ``sections``, and perhaps ``scores``, which the methods of these names call.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    config: type[C]
    switch: ClassVar[str] = ""
    directory: ClassVar[str] = ""
    adds_backbones: ClassVar[bool] = False
    alike: ClassVar[bool] = False
    at_once: ClassVar[bool] = False
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
        config = self.table(study)
        return config if getattr(config, self.switch) else None

    def table(self, study: Study) -> C:
        """The settings of the stage's table in a study; without one, default settings with seed and unit of the
        bootstrap of the probes."""
        own = {each.name for each in fields(self.config)}  # type: ignore[arg-type]
        shared = {name: getattr(study.probes, name) for name in ("seed", "resample_by") if name in own}
        return study.stages.get(self.name) or self.config(**shared)

    def placed(self, config: C, folder: Path) -> C:
        """The settings of a study file in a folder, to which their paths are relative; by default they have none."""
        return config

    def alone(self, run: Run) -> C | None:
        """The settings if this stage alone is computed, on demand; by default those of the study."""
        return self.chosen(run)

    def units(self, run: Run, config: C) -> Iterable[Unit]:
        """What to compute; by default each backbone.

        Raises:
            ConfigError: the settings do not fit the backbones.
        """
        return _each(run)

    def reported(self, run: Run) -> Iterable[Unit]:
        """What a report may show; by default each backbone, and no trainings of backbones that are added."""
        return () if self.adds_backbones else _each(run)

    def settings(self, config: C) -> JSON:
        """The settings that change results, as they are stored."""
        return asdict(config)  # type: ignore[call-overload, no-any-return]

    def stated(self, stored: Mapping[str, Any]) -> JSON:
        """The settings that results.json states, without paths: runs are compared by them.

        Args:
            stored: settings and inputs of results, as they are stored.
        """
        names = [*(each.name for each in fields(self.config)), "plugin"]  # type: ignore[arg-type]
        return {name: stored[name] for name in names if name in stored}

    def inputs(self, run: Run, config: C, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
        """What results are computed from besides embeddings and settings, such as digests of probes.

        Args:
            before: what was stored, if results are loaded.
        """
        return {}

    def stamp(self, run: Run, config: C, unit: Unit, before: Mapping[str, Any] | None = None) -> Stamp:
        """The stamp of current inputs."""
        settings = {**self.settings(config), **self.inputs(run, config, unit, before)}
        return Stamp.of(run.store, run.tables[unit.name], settings)

    def dated(self, run: Run, config: C, unit: Unit, before: Mapping[str, Any] | None = None) -> Stamp:
        """`stamp`, with the version of the stage, and the files of a plug-in."""
        made = self.stamp(run, config, unit, before)
        own = {"plugin": self.code} if self.code else {}
        return replace(made, settings={**made.settings, **own}, code=f"version {self.version}; {made.code}")

    @cached_property
    def code(self) -> str:
        """Digest of the files of a plug-in's stage; "" for stages of this package."""
        modules = dict.fromkeys(kind.__module__ for kind in type(self).__mro__)
        return "-".join(files_digest(each) for each in modules if each.partition(".")[0] not in _KNOWN)

    def command(self, run: Run) -> str:
        """The command that computes the stage again; empty if only ``substyle run`` does."""
        return f"substyle stage {self.name} {run.store.path}" if self.without_run else ""

    @property
    def without_run(self) -> bool:
        """Whether a store and results of other stages suffice: it embeds no photographs, nor adds backbones."""
        return not self.adds_backbones and type(self).prepare is Stage.prepare

    def check(self, study: Study, counts: SplitCounts) -> list[str]:
        """Check a study before anything is computed. Returns warnings.

        Raises:
            ConfigError: the stage would fail.
        """
        return []

    def check_networks(self, study: Study, pipeline: PixelPipeline, stored: Collection[str]) -> None:
        """Load the networks with which the stage would fail after hours of embedding.

        Args:
            stored: backbones of the study that have embeddings already.
        """

    def elsewhere(self, study: Study, out: Path) -> Iterable[Elsewhere]:
        """Other photographs that the stage embeds, in stores below an output folder."""
        return ()

    def prepare(self, run: Run, config: C) -> None:
        """Do what precedes the check for outdated results, such as embedding other photographs."""

    def places(self, run: Run, config: C, outdated: Sequence[Unit]) -> Places:
        """Where units are computed."""
        if not self.at_once:
            return Places()
        given, tables = getattr(config, "device", "cpu"), [run.tables[unit.name] for unit in outdated]
        return Places.of(tables, self.place(config), getattr(config, "threads", 0), alone=":" in given)

    def place(self, config: C) -> torch.device:
        """The device of the settings, the first of several."""
        return devices.resolve(getattr(config, "device", "cpu"), prefix=f"{self.name}.").torch_device

    @contextmanager
    def shared(self, run: Run, config: C, outdated: Sequence[Unit]) -> Iterator[Any]:
        """What the computation of several units shares."""
        yield None

    @abstractmethod
    def compute(self, run: Run, config: C, unit: Unit, shared: Any, folder: Path) -> bool | None:  # noqa: ANN401
        """Write the results of a unit into an empty folder.

        Returns:
            False if they are incomplete: they are shown, and computed again by the next run.
        """

    @abstractmethod
    def load(self, run: Run, folder: Path) -> R:
        """Load the results of a unit."""

    def added(self, run: Run, found: Mapping[str, R]) -> Sequence[BackboneChoice]:
        """Backbones to embed before later stages.

        Args:
            found: results by key of the unit.
        """
        return ()

    def replaced(self, run: Run, found: Mapping[str, R]) -> Iterable[BackboneEntry]:
        """Backbones of the store that `added` ones replace; their results are deleted when these are embedded."""
        return ()

    def as_json(self, result: R) -> Mapping[str, Any]:
        """The results of a unit as JSON."""
        return self.of_backbone(result)

    def lines(self, result: R) -> Iterable[str]:
        """Main numbers of a unit for a terminal: by default numbers of at most two names."""
        for name, value in self.as_json(result).items():
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

    def scores(self, backbone: BackboneResults) -> Iterable[ComparedScore]:
        """Fractions of a backbone that `substyle compare` compares between runs."""
        return self.report.scores(backbone) if self.report and hasattr(self.report, "scores") else ()

    def sections(self, results: ResultsDocument) -> Iterable[Section]:
        """Sections of the report.

        Args:
            results: the document, with labels in place of names of backbones.
        """
        return self.report.sections(results) if self.report else ()

    def folder(self, run: Run, unit: Unit) -> Path:
        """Folder of a unit's results."""
        return run.out / (self.directory or self.name) / unit.folder

    def chosen(self, run: Run) -> C | None:
        """The settings of a run; None if the stage is off or there is no study."""
        given: C | None = run.configs.get(self.name)
        return self.of(run.study) if given is None and run.study is not None else given

    def computed(self, run: Run) -> dict[str, R]:
        """Compute missing and outdated results. Returns all results by key of the unit; none if the stage is off.

        Raises:
            StaleError: an input changed during the computation.
        """
        config = self.chosen(run)
        if config is None and run.study is None and self.in_reports:
            config = self._usual(run)
        if config is None:
            return {}
        units = list(dict.fromkeys(self.units(run, config)))
        self.prepare(run, config)
        stamps = {unit: self.dated(run, config, unit) for unit in units}
        outdated = [unit for unit in units if not fits(self.folder(run, unit), stamps[unit])]
        if units and outdated == units:
            run.recomputed.add(self.name)
        reading = Lock()

        def now(unit: Unit) -> Stamp:
            with reading:
                return self.dated(run, config, unit)

        places = self.places(run, config, outdated)

        def into(unit: Unit, work: Work) -> None:
            compute_into(self.folder(run, unit), stamps[unit], partial(now, unit), work, beside=places.count)

        if places.count > 1:
            ordered = sorted(outdated, key=lambda unit: at_once.longest_first(run.tables[unit.name]))
            by_key = {unit.key: unit for unit in ordered}
            own: Any = config
            if getattr(config, "threads", 0):
                own = replace(own, threads=places.threads)
            works = {key: partial(self.compute, _alone(run, unit), own, unit, None) for key, unit in by_key.items()}
            at_once.compute(self.name, works, lambda key, work: into(by_key[key], work), places, quiet=run.quiet)
        else:
            with self.shared(run, config, outdated) as shared:
                for unit in outdated:
                    into(unit, partial(self.compute, run, config, unit, shared))
        return {unit.key: self.load(run, self.folder(run, unit)) for unit in units}

    def kept(self, run: Run) -> dict[str, R]:
        """Load the results of the backbones of a run by key of the unit; missing ones are left out.

        Raises:
            StaleError: results are outdated.
        """
        config = self.chosen(run)
        if run.study is not None and config is None:
            return {}
        found = {}
        for unit in self.reported(run):
            folder = self.folder(run, unit)
            if (note := note_of(folder)) is None:
                continue
            command = self.command(run)
            own = self._restored(folder, note.stamp.settings, command) if config is None else config
            if self.alike:
                config = own
            require_fresh(folder, note, self.dated(run, own, unit, note.stamp.settings), command)
            found[unit.key] = self.load(run, folder)
        return found

    def _usual(self, run: Run) -> C:
        """The settings of stored results, or default ones with the seed of the store."""
        for folder in (self.folder(run, unit) for unit in self.reported(run)):
            with suppress(StaleError):
                if (note := note_of(folder)) is not None:
                    return self._restored(folder, note.stamp.settings, "")
        seeded = any(each.name == "seed" for each in fields(self.config))  # type: ignore[arg-type]
        return self.config(**({"seed": run.store.settings.seed} if seeded else {}))

    def _restored(self, folder: Path, settings: Mapping[str, Any], command: str) -> C:
        """The settings that results were computed with."""
        names = [each.name for each in fields(self.config)]  # type: ignore[arg-type]
        try:
            return self.config(**{name: settings[name] for name in names if name in settings})
        except (SubstyleError, TypeError, ValueError) as error:
            raise StaleError(f"{folder}: outdated, of another version of substyle ({error})", command) from error


def _alone(run: Run, unit: Unit) -> Run:
    """What the computation of a unit reads in another process."""
    table = run.tables[unit.name]
    recorded = zip(table.transformations, table.generators or ("",) * len(table.transformations), strict=True)
    table = replace(table, generators=tuple(generator_of(name, known) for name, known in recorded))  # also of plug-ins
    nothing: JSON = {"study": None, "configs": {}, "results": {}, "embedding": None, "source": None, "_once": {}}
    return replace(run, tables={unit.name: table}, quiet=True, **nothing)


def _each(run: Run) -> list[Unit]:
    return [Unit(name, run.store.backbone(name).slug) for name in run.tables]


class TrainingStage(Stage[C, str]):
    """A stage that trains backbones: results are their names, ``<prefix><file>``.

    Attributes:
        prefix: prefix of the names.
    """

    adds_backbones = True
    prefix: ClassVar[str]

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

    def as_json(self, result: JSON) -> JSON:
        """The results."""
        return result
