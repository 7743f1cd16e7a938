"""Checks that need seconds, made before the hours of embedding: what would fail late fails here, with what to do.

Everything is decided from keys, labels and splits of photographs, and from the study. Photographs that turn out to be
damaged are left out later, so numbers here are upper bounds.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.backbones import registry
from substyle.engine.backbones.families.tensorflow import prefix_of
from substyle.engine.config import BackboneChoice, Study
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.store import catalog
from substyle.engine.store.layout import TEST, TRAIN, UNLABELLED, VAL
from substyle.engine.store.manifest import Fractions, Manifest, assign
from substyle.kernels.errors import ConfigError
from substyle.pipelines.sources import ImageRecord, Source, SourceConfig, kind_of, open_source
from substyle.pipelines.storage import Place
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all

MIN_TEST = 2  # of one image there is no interval
_NAMED = 5  # names listed in a message


@dataclass(frozen=True)
class SplitCounts:
    """How many images of each class are in each split.

    Attributes:
        class_names: C names.
        count_CS: (C + 1, 3) images of each class in train, val and test; the last row is of unlabelled ones.
        given: whether the source gives the splits, and not a hash.
    """

    class_names: tuple[str, ...]
    count_CS: NDArray[np.int64]
    given: bool

    @property
    def total(self) -> tuple[int, int, int]:
        """Images in train, val and test."""
        train, val, test = self.count_CS.sum(axis=0).tolist()
        return train, val, test

    def classes(self, split: int) -> list[str]:
        """Names of the classes with images in a split."""
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
) -> list[str]:
    """Check all that can be checked of a study before anything is embedded.

    Args:
        study: what is to be done; its plug-ins are loaded.
        source: its photographs.
        out: folder of its results.
        store_path: where its embeddings go.
        records: the photographs that are taken, after ``study.limit``.
        manifest: of a store that exists: its photographs keep their splits.
        writes_store: False for a store that has everything already, which need not be writable.

    Returns:
        warnings, a line each.

    Raises:
        ConfigError: the first thing that would fail, or give a wrong number.
    """
    transformations = study.settings().transformations
    check_backbones(study.backbones)
    check_writable(cache.root(), "$SUBSTYLE_CACHE", "set $SUBSTYLE_CACHE to another one")
    check_writable(out, "--out", "name another one with --out")
    if writes_store:
        check_store(store_path)
    counts = count_splits(records, source, seed=study.seed, fractions=study.splits.fractions, manifest=manifest)
    warnings = check_suite(transformations) + check_splits(counts)
    warnings += check_tasks(study.probes, transformations, counts)
    return warnings + check_shift(study.shift, counts, study.probes, study.source)


def check_backbones(choices: Sequence[BackboneChoice]) -> None:
    """Names, each once, and files of weights. Raises ConfigError."""
    names = [choice.name for choice in choices]
    for i, choice in enumerate(choices):
        registry.check_checkpoint(choice.name, choice.checkpoint)
        if choice.name in names[:i]:
            raise ConfigError("backbone", choice.name, "each backbone once")
        path = choice.checkpoint
        if path is not None and not path.exists() and prefix_of(path) is None:
            raise ConfigError(f"{choice.name}: checkpoint", str(path), "a file or a folder that exists")


def check_writable(path: Path, field: str, remedy: str) -> None:
    """Raise ConfigError unless a folder can be written to, or made. Nothing is left there.

    Args:
        path: the folder. Where it does not exist, the nearest folder above it that does is tried.
        field: what to call it.
        remedy: how to choose another one.
    """
    there = path.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise ConfigError(field, str(path), f"a folder, and {there} is not one: {remedy}")
    try:
        with tempfile.TemporaryFile(dir=there) as file:  # without a name: a process that is killed leaves nothing
            file.write(b"substyle")
            file.flush()
    except OSError as error:
        raise ConfigError(
            field, str(path), f"a folder that can be written to ({there}: {error.strerror}): {remedy}"
        ) from error


def check_store(path: Place) -> None:
    """Raise ConfigError unless a store can be made at a local path, or the one there can be written to."""
    if not isinstance(path, Path):
        return
    remedy = "name another one with --store"
    if catalog.exists(path):
        if not os.access(path, os.W_OK | os.X_OK):  # no temporary file: other processes may be reading the store
            raise ConfigError("--store", str(path), f"a store that can be written to: {remedy}")
        return
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError("--store", str(path), f"a store, or a path where nothing is yet: {remedy}")
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
        records: the photographs that are taken.
        source: where they come from.
        manifest: of a store that exists: its photographs count as well, with the splits that they have there.
    """
    there = set(manifest.keys) if manifest else set()
    names = list(manifest.class_names) if manifest else []
    new = [record for record in records if record.key not in there]
    taken = {record.label for record in new if record.label is not None}
    known = set(names)
    names += [name for label, name in enumerate(source.class_names) if label in taken and name not in known]
    number = {name: i for i, name in enumerate(names)}
    label_N = np.array([UNLABELLED if r.label is None else number[source.class_names[r.label]] for r in new], np.int64)
    splits = {record.split for record in records}
    split_N = assign(
        [record.key for record in new],
        label_N.tolist(),
        [record.split for record in new],
        seed=seed,
        fractions=fractions,
        source=splits,
    )
    count_CS = np.zeros((len(names) + 1, 3), np.int64)
    np.add.at(count_CS, (label_N, split_N), 1)  # unlabelled ones are -1, the last row
    if manifest:
        np.add.at(count_CS, (manifest.label_N, manifest.split_N), 1)
    return SplitCounts(tuple(names), count_CS, not splits <= {None, "train"})


def check_splits(counts: SplitCounts) -> list[str]:
    """Check that probes have something to learn from and to be scored on.

    Returns:
        warnings.

    Raises:
        ConfigError: too few images in a split, or a class that is tested and not learned.
    """
    train, val, test = counts.total
    found = f"{train} training, {val} validation and {test} test photographs"
    how = "" if counts.given else ", or change the shares in [splits]"
    if train < 1 or train + val < 2:
        raise ConfigError(
            *(_field(counts, "train"), found),
            f"at least 1 photograph to learn from and 1 to validate on: add training photographs{how}",
        )
    if test < MIN_TEST:
        raise ConfigError(_field(counts, "test"), found, f"at least {MIN_TEST} test photographs: add some{how}")
    if len(counts.class_names) < 2:
        return []
    learned, tested = set(counts.classes(TRAIN)), counts.classes(TEST)
    strange = [name for name in tested if name not in learned]
    if strange:
        raise ConfigError(
            _field(counts, "train"),
            f"{len(strange)} of {len(counts.class_names)} classes with test and without training photographs: "
            f"{_some(strange)}",
            "training photographs of every class that is tested, as all its test photographs would count as wrong: "
            f"add some, or leave these classes out{how}",
        )
    warnings = []
    untested = sorted(set(counts.class_names) - set(tested))
    if tested and untested:
        warnings.append(
            f"{len(untested)} of {len(counts.class_names)} classes have no test photographs and are not scored: "
            f"{_some(untested)}"
        )
    single = [
        name
        for name, (count, _, scored) in zip(counts.class_names, counts.count_CS[:-1].tolist(), strict=True)
        if count == 1 and scored
    ]
    if single and not counts.classes(VAL):
        warnings.append(
            "there are no validation photographs of any class, so a tenth of the training photographs is validated on: "
            f"classes with only one may not be learned, and then count as wrong: {_some(single)}"
        )
    return warnings


def check_suite(transformations: Sequence[str]) -> list[str]:
    """Check that a suite has the roles that probes need.

    Returns:
        warnings.

    Raises:
        ConfigError: no identity, or an unknown transformation.
    """
    known = _transformations(transformations)
    if "identity" not in transformations:
        raise ConfigError("suite", ", ".join(transformations), "identity among the transformations")
    seen = {t.coarse for t in known if t.role == "train" and t.name != "identity"}
    held_out = {t.coarse for t in known if t.role == "held_out"}
    if not seen & held_out:
        return [
            "the suite has no held-out transformation of a coarse class that is also trained on: accuracy on held-out "
            "transformations is not measured"
        ]
    return []


def check_tasks(config: ProbeConfig, transformations: Sequence[str], counts: SplitCounts) -> list[str]:
    """Check which probes the photographs and the suite can pose.

    Returns:
        warnings, one for each that is skipped.

    Raises:
        ConfigError: none of those asked for can be posed.
    """
    trained = {t.coarse for t in _transformations(transformations) if t.role == "train"}
    no_class = None
    if len(counts.classes(TRAIN)) < 2:
        no_class = f"photographs of at least 2 classes to learn from, and there are {len(counts.classes(TRAIN))}"
    elif not counts.classes(TEST):
        no_class = "test photographs with a class, and there are none"
    no_fine = None if len(transformations) > 1 else "a transformation besides identity"
    needs = {
        "fine": no_fine,
        "coarse": None if len(trained) > 1 else "transformations of at least 2 coarse classes in the role train",
        "semantic": no_class,
        "multitask": no_class or no_fine,
    }
    missing = {task: needs[task] for task in config.tasks if needs[task]}
    if len(missing) == len(config.tasks):
        needed = "; ".join(f"{task} needs {need}" for task, need in missing.items())
        raise ConfigError("probes.tasks", list(config.tasks), f"at least one that can be posed ({needed})")
    return [f"the {task} probe is skipped: it needs {need}" for task, need in missing.items()]


def check_shift(
    shift: Mapping[str, Path | str], counts: SplitCounts, probes: ProbeConfig, source: SourceConfig | None = None
) -> list[str]:
    """Open the photographs of a distribution shift, and compare their classes to those that the class probe learns.

    Returns:
        warnings, one for each that has classes which the probe does not know.

    Raises:
        ConfigError: there is no class probe, photographs that cannot be opened, or none of a known class.
    """
    if not shift:
        return []
    known = set(counts.classes(TRAIN))
    if len(known) < 2:
        raise ConfigError(
            "shift",
            ", ".join(shift),
            f"nothing, as the study's photographs have {len(known)} classes to learn: it scores the class probe",
        )
    if "semantic" not in probes.tasks or "linear" not in probes.heads or not probes.save:
        raise ConfigError(
            "shift", ", ".join(shift), "semantic in probes.tasks, linear in probes.heads and probes.save = true"
        )
    warnings = []
    for name, folder in shift.items():
        photographs = open_source(folder, (source or SourceConfig()).fitting(kind_of(folder)))
        names = photographs.class_names
        count = Counter(None if r.label is None else names[r.label] for r in photographs.records)
        found = sorted(text for text in count if text is not None)
        if not found:
            raise ConfigError(f"shift.{name}", str(folder), "photographs with classes, such as a folder for each class")
        if not known & set(found):
            raise ConfigError(f"shift.{name}", _some(found), f"some of the study's classes: {_some(sorted(known))}")
        unknown = [text for text in found if text not in known]
        if unknown or count[None]:
            left_out = sum(count[text] for text in unknown) + count[None]
            kinds = [f"of classes that the study does not learn ({_some(unknown)})"] if unknown else []
            kinds += ["without a class"] if count[None] else []
            warnings.append(
                f"shift {name}: {left_out} of {count.total()} photographs are left out: {' or '.join(kinds)}"
            )
    return warnings


def _transformations(names: Sequence[str]) -> list[base.Transformation]:
    load_all()
    return [base.get(name) for name in names]


def _field(counts: SplitCounts, split: str) -> str:
    return "images" if counts.given else f"splits.{split}"


def _some(names: Collection[str]) -> str:
    """A few names, and how many more there are."""
    first = ", ".join(list(names)[:_NAMED])
    return first if len(names) <= _NAMED else f"{first} and {len(names) - _NAMED} more"
