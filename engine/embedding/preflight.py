"""Preflight checks of a study: fail within seconds, with advice, instead of after hours of embedding.

The checks use the study and the keys, labels and splits of photographs. Counts are upper bounds, because photographs
that cannot be decoded are quarantined later.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.backbones import registry
from substyle.engine.config import BackboneChoice, Study
from substyle.engine.embedding.blobs import not_used
from substyle.engine.embedding.plan import added
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.store import catalog
from substyle.engine.store.layout import TEST, TRAIN, VAL, Fractions
from substyle.engine.store.manifest import Manifest
from substyle.errors import ConfigError, abbreviated
from substyle.pipelines.sources import ImageRecord, Source, SourceConfig, kind_of, open_source
from substyle.pipelines.storage import Place
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all

MIN_TEST = 2  # one image has no confidence interval


@dataclass(frozen=True)
class SplitCounts:
    """Number of images by class and split.

    Attributes:
        class_names: C names.
        count_CS: (C + 1, 3) images of each class in train, val and test; the last row counts unlabelled images.
        given: whether the splits are the source's own instead of hashed.
    """

    class_names: tuple[str, ...]
    count_CS: NDArray[np.int64]
    given: bool

    @property
    def total(self) -> tuple[int, int, int]:
        """Number of images in train, val and test."""
        train, val, test = self.count_CS.sum(axis=0).tolist()
        return train, val, test

    def classes(self, split: int) -> list[str]:
        """Return the names of the classes with images in a split."""
        return [name for name, count in zip(self.class_names, self.count_CS[:-1, split], strict=True) if count]


def check_study(
    study: Study,
    source: Source,
    out: Path,
    store_path: Place,
    records: Sequence[ImageRecord],
    *,
    manifest: Manifest | None = None,
    writes_store: bool = True,
    checks: Iterable[Callable[[Study, SplitCounts], list[str]]] = (),
) -> list[str]:
    """Check a study before embedding.

    Args:
        study: the study, with its plug-ins loaded.
        source: its photographs.
        out: folder for its results.
        store_path: path of its store.
        records: its photographs, after ``study.limit``.
        manifest: manifest of an existing store, whose photographs keep their splits.
        writes_store: False for a complete store, which need not be writable.
        checks: those of stages, which raise ConfigError or return warnings.

    Returns:
        warnings, one line each.

    Raises:
        ConfigError: the first problem that would cause a failure or a wrong result.
    """
    transformations = study.settings().transformations
    check_backbones(study.backbones)
    check_writable(cache.root(), "$SUBSTYLE_CACHE", "set $SUBSTYLE_CACHE to another folder")
    check_writable(out, "--out", "pass another --out")
    if writes_store:
        check_store(store_path)
    counts = count_splits(records, source, seed=study.seed, fractions=study.splits.fractions, manifest=manifest)
    warnings = check_suite(transformations) + not_used(source, transformations) + check_splits(counts)
    tested = [record.key for record in records if record.split == "test" or not counts.given]
    if study.resample_by == "folder" and len({str(PurePosixPath(key).parent) for key in tested}) < 2:
        warnings.append('no intervals: test photographs are in one folder, and the study has resample_by = "folder"')
    warnings += check_tasks(study.probes, transformations, counts)
    return warnings + [warning for check in checks for warning in check(study, counts)]


def check_backbones(choices: Sequence[BackboneChoice]) -> None:
    """Raise ConfigError unless names are valid and unique, and checkpoints exist."""
    seen: set[str] = set()
    for choice in choices:
        for name in choice.names:
            registry.check_checkpoint(name, choice.checkpoint)
            if name in seen:
                raise ConfigError("backbone", name, "each backbone once")
            seen.add(name)


def check_writable(path: Path, field: str, remedy: str) -> None:
    """Raise ConfigError unless a folder is writable or can be created. Leaves no files.

    Args:
        path: the folder. If it does not exist, its nearest existing parent is checked.
        field: field of the error.
        remedy: advice for the error message.
    """
    existing = path.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigError(field, str(path), f"a folder, but {existing} is not one; {remedy}")
    try:
        with tempfile.TemporaryFile(dir=existing) as file:  # has no name, so a killed process leaves nothing
            file.write(b"substyle")
            file.flush()
    except OSError as error:
        raise ConfigError(field, str(path), f"a writable folder ({existing}: {error.strerror}); {remedy}") from error


def check_store(path: Place) -> None:
    """Raise ConfigError unless a local store is writable or can be created."""
    if not isinstance(path, Path):
        return
    remedy = "pass another --store"
    # asked first: another process may create the store meanwhile, all of it at once
    taken = os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))
    if catalog.exists(path):
        if not os.access(path, os.W_OK | os.X_OK):  # no temporary file: other processes may be reading the store
            raise ConfigError("--store", str(path), f"a writable store; {remedy}")
        return
    if taken:
        raise ConfigError("--store", str(path), f"an existing store, or a path that does not exist; {remedy}")
    check_writable(path.parent, "--store", remedy)


def count_splits(
    records: Sequence[ImageRecord],
    source: Source,
    *,
    seed: int,
    fractions: Fractions,
    manifest: Manifest | None = None,
) -> SplitCounts:
    """Count the images of every class and split as embedding will assign them.

    Args:
        records: the photographs.
        source: their source.
        manifest: manifest of an existing store, whose photographs are counted with their splits.
    """
    _, names, label_N, split_N = added(records, source, manifest, seed=seed, fractions=fractions)
    count_CS = np.zeros((len(names) + 1, 3), np.int64)
    np.add.at(count_CS, (label_N, split_N), 1)  # unlabelled images have label -1, the last row
    if manifest:
        np.add.at(count_CS, (manifest.label_N, manifest.split_N), 1)
    return SplitCounts(tuple(names), count_CS, not {record.split for record in records} <= {None, "train"})


def check_splits(counts: SplitCounts) -> list[str]:
    """Check that probes have images to train, validate and test on.

    Returns:
        warnings.

    Raises:
        ConfigError: a split has too few images, or a tested class has no training images.
    """
    train, val, test = counts.total
    found = f"{train} training, {val} validation and {test} test photographs"
    how = "" if counts.given else ", or change the shares in [splits]"
    if train < 1 or train + val < 2:
        raise ConfigError(
            *(_field(counts, "train"), found),
            f"at least 1 photograph for training and 1 for validation; add training photographs{how}",
        )
    if test < MIN_TEST:
        raise ConfigError(_field(counts, "test"), found, f"at least {MIN_TEST} test photographs; add some{how}")
    if len(counts.class_names) < 2:
        return []
    learned, tested = set(counts.classes(TRAIN)), counts.classes(TEST)
    strange = [name for name in tested if name not in learned]
    if strange:
        raise ConfigError(
            _field(counts, "train"),
            f"{len(strange)} of {len(counts.class_names)} classes with test but without training photographs: "
            f"{abbreviated(strange)}",
            "training photographs of every tested class, otherwise all its test photographs count as errors; "
            f"add some, or remove these classes{how}",
        )
    warnings = []
    untested = sorted(set(counts.class_names) - set(tested))
    if tested and untested:
        warnings.append(
            f"{len(untested)} of {len(counts.class_names)} classes are not scored, without test photographs: "
            f"{abbreviated(untested)}"
        )
    single = [
        name
        for name, (count, _, scored) in zip(counts.class_names, counts.count_CS[:-1].tolist(), strict=True)
        if count == 1 and scored
    ]
    if single and not counts.classes(VAL):
        warnings.append(
            "no class has validation photographs, so a tenth of the training photographs is used for validation; "
            f"classes with only one training photograph may not be learned and count as errors: {abbreviated(single)}"
        )
    return warnings


def check_suite(transformations: Sequence[str]) -> list[str]:
    """Check that a suite has the roles that probes need.

    Returns:
        warnings.

    Raises:
        ConfigError: identity is missing, or a transformation is unknown.
    """
    known = _transformations(transformations)
    if "identity" not in transformations:
        raise ConfigError("suite", ", ".join(transformations), "identity among the transformations")
    seen = {t.kind for t in known if t.role == "train" and t.name != "identity"}
    held_out = {t.kind for t in known if t.role == "held_out"}
    if not seen & held_out:
        return [
            "accuracy on held-out transformations is not measured: the suite has no held-out transformation of a "
            "kind with training transformations"
        ]
    return []


def check_tasks(config: ProbeConfig, transformations: Sequence[str], counts: SplitCounts) -> list[str]:
    """Check which probes are possible with the photographs and the suite.

    Returns:
        warnings, one per skipped probe.

    Raises:
        ConfigError: none of the requested probes is possible.
    """
    trained = {t.kind for t in _transformations(transformations) if t.role == "train"}
    no_class = None
    if len(counts.classes(TRAIN)) < 2:
        no_class = f"training photographs of at least 2 classes, found {len(counts.classes(TRAIN))}"
    elif not counts.classes(TEST):
        no_class = "labelled test photographs, found none"
    no_transformation = None if len(transformations) > 1 else "a transformation besides identity"
    needs = {
        "transformation": no_transformation,
        "kind": None if len(trained) > 1 else "training transformations of at least 2 kinds",
        "class": no_class,
        "multitask": no_class or no_transformation,
    }
    missing = {task: needs[task] for task in config.tasks if needs[task]}
    if len(missing) == len(config.tasks):
        needed = "; ".join(f"{task} needs {need}" for task, need in missing.items())
        raise ConfigError("probes.tasks", list(config.tasks), f"at least one possible task ({needed})")
    return [f"the {task} probe is skipped; it needs {need}" for task, need in missing.items()]


def opened(field: str, folder: Path | str, source: SourceConfig) -> Source:
    """Open photographs. Raises ConfigError(field, ...)."""
    try:
        return open_source(folder, source.fitting(kind_of(folder)))
    except ConfigError as error:
        if error.field != "images":
            raise
        raise ConfigError(field, error.given, error.allowed) from None


def require_class_probe(field: str, given: str, counts: SplitCounts, probes: ProbeConfig) -> None:
    """Raise ConfigError unless linear class probes are trained."""
    known = set(counts.classes(TRAIN))
    if len(known) < 2:
        allowed = f"none, because it scores the class probe and the study has {len(known)} training classes"
        raise ConfigError(field, given, allowed)
    if "class" not in probes.tasks or "linear" not in probes.heads:
        raise ConfigError(field, given, "class in probes.tasks and linear in probes.heads")


def require_trained_on(field: str, given: Sequence[str], study: Study, *, computed: bool = False) -> None:
    """Raise ConfigError if a suite has no transformations, or none that are ``computed``, to train ``given`` on."""
    known = _transformations(study.settings().transformations)
    if given and sum(t.role == "train" and not (computed and t.made_by == base.PHOTOGRAPHS) for t in known) < 2:
        what = f"a {'computed ' * computed}transformation of role train besides identity"
        raise ConfigError(field, ", ".join(given), f"a suite with {what}")


def _transformations(names: Sequence[str]) -> list[base.Transformation]:
    load_all()
    return [base.get(name) for name in names]


def _field(counts: SplitCounts, split: str) -> str:
    return "images" if counts.given else f"splits.{split}"
