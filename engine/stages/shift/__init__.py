"""Distribution shift: class probes on other photographs, or on corrupted ones, and its relation to sensitivity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.engine.analysis import geometry
from substyle.engine.analysis.robustness import Replicates, robustness
from substyle.engine.config import Study
from substyle.engine.embedding.preflight import SplitCounts, opened, require_class_probe
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.probes.resampling import ACCURACY, Bounds, Estimate, resample
from substyle.engine.results.model import ResultsDocument
from substyle.engine.stages import registry
from substyle.engine.stages.elsewhere import ElsewhereStage, absolute, store_stamps
from substyle.engine.stages.execution import folder_of
from substyle.engine.stages.probes import probe_file
from substyle.engine.stages.shift import section
from substyle.engine.stages.stage import JSON, Elsewhere, Run, TrainingStage, Unit
from substyle.engine.stages.stamp import file_digest, is_result
from substyle.engine.stages.tables import NewPhotographs
from substyle.engine.store.files import read_arrays, write_arrays
from substyle.engine.store.layout import TEST, TRAIN, ResampleBy, slug
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, open_table
from substyle.errors import ConfigError, abbreviated
from substyle.pipelines.sources import SourceConfig
from substyle.pipelines.sources.labels import numbered
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.names import family
from substyle.pipelines.transforms.registry import suite
from substyle.pipelines.validation import validated

BOOTSTRAP = 2000
OWN = ""  # in place of a folder: the study's test photographs in the suite that names the shift
_REPLICATES = "replicates.npz"


@validated("shift")
class ShiftConfig:
    """Settings of the stage.

    Attributes:
        folders: photographs with classes by name of the shift, or `OWN`; classes unknown to a probe are ignored.
        max_images, resample_by, seed: sample and bootstrap of the sensitivity, as in the analysis.
    """

    folders: dict[str, Path | str]
    max_images: int
    resample_by: ResampleBy
    seed: int


class ShiftStage(ElsewhereStage[ShiftConfig]):
    """Score each backbone's linear class probe on other photographs of the same classes.

    Results are ``{"accuracy", "ci95", "images"}`` by name of the shift; of several transformations their mean accuracy.
    Bootstrap replicates of sensitivity and loss are kept beside them. Embeddings are written to ``shift/<name>.zarr``,
    replacing a store of other photographs.
    """

    name = "shift"
    stamps = "shifted"
    config = ShiftConfig
    report = section

    def of(self, study: Study) -> ShiftConfig | None:
        """Photographs of `[shift]`, and the suite of ``corruptions``."""
        folders = absolute({**study.shift, **({study.corruptions: OWN} if study.corruptions else {})})
        own = study.analysis
        return ShiftConfig(folders, own.max_images, own.resample_by, own.seed) if folders else None

    def check(self, study: Study, counts: SplitCounts) -> list[str]:
        """Raise ConfigError without a class probe, or without photographs of its classes; warn of other classes."""
        return check_corruptions(study, counts) + check_shift(study.shift, counts, study.probes, study.source)

    def elsewhere(self, study: Study, out: Path) -> Iterable[Elsewhere]:
        """Original photographs of `[shift]`, and test photographs of the study in the suite of ``corruptions``."""
        config = self.of(study)
        for name, folder in config.folders.items() if config else ():
            names = suite(name) if folder == OWN else ("identity",)
            settings = replace(study.settings(), transformations=names)
            yield Elsewhere(f"shift {name}", folder or None, self.path(out, name), settings)

    def units(self, run: Run, config: ShiftConfig) -> Iterable[Unit]:
        """Backbones that have a class probe."""
        return [unit for unit in super().units(run, config) if is_result(probe_file(run.out, unit.name, "semantic"))]

    def inputs(self, run: Run, config: ShiftConfig, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
        """The embeddings of the photographs, and the probe."""
        probe = probe_file(run.out, unit.name, "semantic")
        return {self.stamps: store_stamps(self.stores(run, config), unit.name), "probe": file_digest(probe)}

    def compute(self, run: Run, config: ShiftConfig, unit: Unit, folder: Path) -> None:
        """Write scores and replicates."""
        probe = Probe.load(probe_file(run.out, unit.name, "semantic"))
        table, stores = run.tables[unit.name], self.stores(run, config)
        scores, kept = _scores(table, probe, stores, self.new_photographs(run), config)
        self.write(folder, scores)
        write_arrays(folder / _REPLICATES, **{key: each.array() for key, each in kept.items()})

    def of_document(self, run: Run, document: ResultsDocument) -> Mapping[str, Any]:
        """How well sensitivity tells the loss under each shift, over networks."""
        own = _replicates(run, self)
        rows = robustness({name: own[name] for name in document.networks() if name in own})
        return {"robustness": rows} if rows else {}


STAGE = ShiftStage()


def check_corruptions(study: Study, counts: SplitCounts) -> list[str]:
    """Check the suite of corruptions and that there is a class probe. Raises ConfigError("corruptions", ...)."""
    if not study.corruptions:
        return []
    try:
        made = suite(study.corruptions)
    except ConfigError as error:
        raise ConfigError("corruptions", study.corruptions, error.allowed) from None
    if len(made) < 2 or study.corruptions in study.shift:
        allowed = "a suite with a transformation besides identity, named unlike photographs in [shift]"
        raise ConfigError("corruptions", study.corruptions, allowed)
    if any(isinstance(stage, TrainingStage) and stage.of(study) is not None for stage in registry.stages()):
        learnt = {family(name) for name in suite(study.suite)[1:] if base.get(name).role == "train"}
        if seen := [name for name in made if family(name) in learnt]:
            allowed = f"a suite without {abbreviated(seen)}, which fine-tuned and adapted backbones are trained on"
            raise ConfigError("corruptions", study.corruptions, allowed)
    require_class_probe("corruptions", study.corruptions, counts, study.probes)
    return []


def check_shift(
    shift: Mapping[str, Path | str], counts: SplitCounts, probes: ProbeConfig, source: SourceConfig | None = None
) -> list[str]:
    """Check that the photographs of distribution shifts have classes of the class probe.

    Returns:
        warnings, one per shift with unknown classes.

    Raises:
        ConfigError: the study has no class probe, photographs cannot be opened, or none has a known class.
    """
    if not shift:
        return []
    require_class_probe("shift", ", ".join(shift), counts, probes)
    known = set(counts.classes(TRAIN))
    warnings = []
    for name, folder in shift.items():
        photographs = opened(f"shift.{name}", folder, source or SourceConfig())
        names = photographs.class_names
        count = Counter(None if r.label is None else names[r.label] for r in photographs.records)
        found = sorted(text for text in count if text is not None)
        if not found:
            raise ConfigError(f"shift.{name}", str(folder), "labelled photographs, such as one folder per class")
        if not known & set(found):
            raise ConfigError(
                f"shift.{name}", abbreviated(found), f"some of the study's classes: {abbreviated(sorted(known))}"
            )
        unknown = [text for text in found if text not in known]
        if unknown or count[None]:
            left_out = sum(count[text] for text in unknown) + count[None]
            kinds = [f"of classes outside the study ({abbreviated(unknown)})"] if unknown else []
            kinds += ["without a class"] if count[None] else []
            warnings.append(f"shift {name}: ignoring {left_out} of {count.total()} photographs: {' or '.join(kinds)}")
    return warnings


def _replicates(run: Run, stage: ShiftStage) -> dict[str, Replicates]:
    """Sensitivity, and loss of class accuracy by shift, of backbones with results and labelled test images."""
    found = {}
    scores: Mapping[str, JSON] = run.results.get(stage.name, {})
    for name in filter(scores.get, scores):
        kept = read_arrays(folder_of(stage, run, Unit(name, slug(name))) / _REPLICATES)
        each = {key: Estimate.of(array) for key, array in kept.items()}
        moved = each.pop("sensitivity")
        if each and moved.number is not None:
            found[name] = Replicates(moved, {key.partition("/")[2]: lost for key, lost in each.items()})
    return found


def _scores(
    table: EmbeddingTable,
    probe: Probe,
    stores: Mapping[str, EmbeddingStore],
    photographs: NewPhotographs,
    config: ShiftConfig,
) -> tuple[dict[str, Any], dict[str, Estimate]]:
    """Scores of a backbone's probe on shifted photographs by name, and replicates of sensitivity and loss."""
    scores: dict[str, Any] = {}
    kept = {"sensitivity": _sensitivity(table, config)}
    for number, (name, store) in enumerate(stores.items(), 1):
        shifted = open_table(store, table.backbone)
        own_photographs = config.folders[name] == OWN
        new_N = photographs.of(shifted, table, f"shift {name}", np.arange(len(shifted.keys)))
        made = range(min(1, len(shifted.transformations) - 1), len(shifted.transformations))
        rows, draw = np.flatnonzero(new_N), 0 if own_photographs else number
        reached = _accuracy(shifted, probe, rows, made, config, draw, own=own_photographs)
        if reached is None:
            found = ", ".join(shifted.class_names) or "no classes"
            allowed = f"photographs of some of {', '.join(probe.labels['class'])}"
            if not new_N.all():
                allowed += f"; {np.count_nonzero(~new_N):,} are near-duplicates of training photographs"
            if any(map(numbered, shifted.class_names)):
                allowed += " (numbers are not names: class 0 of one data set is not class 0 of another)"
            raise ConfigError(f"shift.{name}", found, allowed)
        scores[name] = reached[0].entries("accuracy") | {"images": reached[1]}
        tested = _tested(table, (shifted, made) if own_photographs else None)
        clean = _accuracy(table, probe, tested, [0], config)
        if clean is not None:
            kept[f"loss/{name}"] = clean[0] - reached[0]
    return scores, kept


def _tested(table: EmbeddingTable, corrupted: tuple[EmbeddingTable, Sequence[int]] | None) -> NDArray[np.int64]:
    """Indices of test photographs, if given only of those with a corruption: those of further sources have none."""
    rows = table.rows(TEST)
    if corrupted is None:
        return rows
    other, made = corrupted
    keys = np.array(other.keys)[_with_variant(other, made, np.arange(len(other.keys)))]
    return rows[np.isin(np.array(table.keys)[rows], keys)]


def _with_variant(table: EmbeddingTable, made: Sequence[int], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of images that have a variant of some of these transformations."""
    there = [table.present(t, rows) for t in made]
    return rows[np.isin(rows, np.concatenate(there))]


def _accuracy(
    table: EmbeddingTable,
    probe: Probe,
    rows: NDArray[np.int64],
    made: Sequence[int],
    config: ShiftConfig,
    draw: int = 0,
    *,
    own: bool = True,
) -> tuple[Estimate, int] | None:
    """Mean accuracy on some transformations, and the number of images; None without images of known classes.

    Images are in the order of their keys, so that scores of the same images are paired.

    Args:
        draw: selects other resamples for other images.
        own: as of `Probe.truth`.
    """
    rows = table.by_key(_with_variant(table, made, rows))
    truth_N = probe.truth(table, rows, own=own)[0]
    rows, truth_N = rows[truth_N >= 0], truth_N[truth_N >= 0]
    if not len(rows):
        return None
    right_TN = np.stack([(probe.predict(table.take(t, rows)).argmax(axis=1) == truth_N).astype(float) for t in made])
    if table.absent_TN is not None:
        right_TN[table.absent_TN[np.ix_(np.array(made), rows)]] = np.nan
    return _mean(right_TN, table, rows, config, draw), len(rows)


def _sensitivity(table: EmbeddingTable, config: ShiftConfig) -> Estimate:
    """Mean over transformations of the sensitivity, as in the analysis; images in the order of their keys."""
    rows = table.by_key(geometry.draw_images(table, table.rows(TEST), config.max_images, config.seed))
    identity_ND = table.take_finite(0, rows)
    mean_D = identity_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    moved_TN = [
        np.where(
            table.distinct_TN[t, rows],
            geometry.sensitivity(identity_ND, table.take_finite(t, rows), mean_D),
            np.nan,
        )
        for t in range(1, len(table.transformations))
    ]
    return _mean(np.array(moved_TN).reshape(-1, len(rows)), table, rows, config, bounds=None)


def _mean(
    score_TN: NDArray[Any],
    table: EmbeddingTable,
    rows: NDArray[np.int64],
    config: ShiftConfig,
    draw: int = 0,
    *,
    bounds: Bounds | None = ACCURACY,
) -> Estimate:
    group_N = table.groups_of(rows, config.resample_by)
    found = resample(score_TN.astype(np.float64), BOOTSTRAP, config.seed + draw, group_N, bounds=bounds)
    return found.mean(np.ones(len(score_TN)))
