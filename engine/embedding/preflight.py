"""Preflight checks of a study: fail within seconds, with advice, instead of after hours of embedding.

The checks use the study and the keys, labels and splits of photographs. Counts are upper bounds, because photographs
that cannot be decoded are quarantined later.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from substyle.engine import cache
from substyle.engine.backbones import registry
from substyle.engine.backbones.families.tensorflow import prefix_of
from substyle.engine.config import BackboneChoice, Study, names_of
from substyle.engine.embedding.plan import added, limited
from substyle.engine.probes.attacks import FEWEST, is_network, torchattack
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.store import catalog
from substyle.engine.store.layout import SPLITS, TEST, TRAIN, VAL
from substyle.engine.store.manifest import Fractions, Manifest
from substyle.kernels.errors import ConfigError
from substyle.pipelines.sources import ImageRecord, Source, SourceConfig, kind_of, open_source
from substyle.pipelines.storage import Place
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all, suite

MIN_TEST = 2  # one image has no confidence interval
_NAMED = 5  # names listed in a message


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
    warnings = check_suite(transformations) + check_splits(counts)
    tested = [record.key for record in records if record.split == "test" or not counts.given]
    if study.resample_by == "folder" and len({str(PurePosixPath(key).parent) for key in tested}) < 2:
        warnings.append('no intervals: test photographs are in one folder, and the study has resample_by = "folder"')
    warnings += check_tasks(study.probes, transformations, counts)
    check_domains(study)
    check_training(study, transformations, counts)
    check_attack(study, counts)
    warnings += idle_tables(study)
    check_corruptions(study, counts)
    return warnings + check_shift(study.shift, counts, study.probes, study.source)


def check_backbones(choices: Sequence[BackboneChoice]) -> None:
    """Raise ConfigError unless names are valid and unique, and checkpoints exist."""
    seen: set[str] = set()
    for choice in choices:
        for name in choice.names:
            registry.check_checkpoint(name, choice.checkpoint)
            if name in seen:
                raise ConfigError("backbone", name, "each backbone once")
            seen.add(name)
        path = choice.checkpoint
        if path is not None and not path.exists() and prefix_of(path) is None:
            raise ConfigError(f"{choice.name}: checkpoint", str(path), "an existing file or folder")


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
    if catalog.exists(path):
        if not os.access(path, os.W_OK | os.X_OK):  # no temporary file: other processes may be reading the store
            raise ConfigError("--store", str(path), f"a writable store; {remedy}")
        return
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
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
            f"{_some(strange)}",
            "training photographs of every tested class, otherwise all its test photographs count as errors; "
            f"add some, or remove these classes{how}",
        )
    warnings = []
    untested = sorted(set(counts.class_names) - set(tested))
    if tested and untested:
        warnings.append(
            f"{len(untested)} of {len(counts.class_names)} classes are not scored, without test photographs: "
            f"{_some(untested)}"
        )
    single = [
        name
        for name, (count, _, scored) in zip(counts.class_names, counts.count_CS[:-1].tolist(), strict=True)
        if count == 1 and scored
    ]
    if single and not counts.classes(VAL):
        warnings.append(
            "no class has validation photographs, so a tenth of the training photographs is used for validation; "
            f"classes with only one training photograph may not be learned and count as errors: {_some(single)}"
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
    seen = {t.coarse for t in known if t.role == "train" and t.name != "identity"}
    held_out = {t.coarse for t in known if t.role == "held_out"}
    if not seen & held_out:
        return [
            "accuracy on held-out transformations is not measured: the suite has no held-out transformation of a "
            "coarse class with training transformations"
        ]
    return []


def check_tasks(config: ProbeConfig, transformations: Sequence[str], counts: SplitCounts) -> list[str]:
    """Check which probes are possible with the photographs and the suite.

    Returns:
        warnings, one per skipped probe.

    Raises:
        ConfigError: none of the requested probes is possible.
    """
    trained = {t.coarse for t in _transformations(transformations) if t.role == "train"}
    no_class = None
    if len(counts.classes(TRAIN)) < 2:
        no_class = f"training photographs of at least 2 classes, found {len(counts.classes(TRAIN))}"
    elif not counts.classes(TEST):
        no_class = "labelled test photographs, found none"
    no_fine = None if len(transformations) > 1 else "a transformation besides identity"
    needs = {
        "fine": no_fine,
        "coarse": None if len(trained) > 1 else "training transformations of at least 2 coarse classes",
        "semantic": no_class,
        "multitask": no_class or no_fine,
    }
    missing = {task: needs[task] for task in config.tasks if needs[task]}
    if len(missing) == len(config.tasks):
        needed = "; ".join(f"{task} needs {need}" for task, need in missing.items())
        raise ConfigError("probes.tasks", list(config.tasks), f"at least one possible task ({needed})")
    return [f"the {task} probe is skipped; it needs {need}" for task, need in missing.items()]


def _opened(field: str, folder: Path | str, source: SourceConfig) -> Source:
    """Open photographs. Raises ConfigError(field, ...)."""
    try:
        return open_source(folder, source.fitting(kind_of(folder)))
    except ConfigError as error:
        if error.field != "images":
            raise
        raise ConfigError(field, error.given, error.allowed) from None


def check_domains(study: Study) -> None:
    """Raise ConfigError if probes of other domains cannot be trained, or their photographs cannot be opened."""
    if study.domains and ("linear" not in study.probes.heads or not study.probes.save):
        raise ConfigError("domains", ", ".join(study.domains), "linear in probes.heads and probes.save = true")
    for name, folder in study.domains.items():
        if name == study.name:
            raise ConfigError(f"domains.{name}", str(folder), "another name than the study's, which is a domain too")
        source = _opened(f"domains.{name}", folder, study.source)
        records = limited(source.records, study.seed, study.limit)
        try:
            check_splits(count_splits(records, source, seed=study.seed, fractions=study.splits.fractions))
        except ConfigError as error:
            raise ConfigError(f"domains.{name}", error.given, error.allowed) from None


def check_training(study: Study, transformations: Sequence[str], counts: SplitCounts) -> None:
    """Check that there is something to fine-tune and adapt on. Raises ConfigError("finetune...", ...) or "adapt..."."""
    tuned, methods = study.finetune, study.adapt.methods
    known = len(counts.classes(TRAIN))
    if tuned.backbones and known < 2 and set(tuned.objectives) != {"transformation"}:
        allowed = f"transformation, because the study has {known} training classes"
        raise ConfigError("finetune.objectives", ", ".join(tuned.objectives), allowed)
    if known < 2 and "multitask" in methods:
        raise ConfigError("adapt.methods", ", ".join(methods), f"pisco, because the study has {known} training classes")
    for field, given in (("finetune.backbones", tuned.backbones), ("adapt.methods", methods)):
        if given and sum(base.get(name).role == "train" for name in transformations) < 2:
            allowed = "a suite with a transformation of role train besides identity"
            raise ConfigError(field, ", ".join(given), allowed)


def idle_tables(study: Study) -> list[str]:
    """Tables of the study with settings, of which nothing is run."""
    warnings = []
    for table, config, field in (("attack", study.attack, "attacks"), ("finetune", study.finetune, "backbones")):
        given = {name for name, value in vars(config).items() if value != getattr(type(config)(), name)}
        if not getattr(config, field) and given - {"seed", "resample_by"}:
            warnings.append(f"[{table}] does nothing: {field} is empty")
    return warnings


def check_attack(study: Study, counts: SplitCounts) -> None:
    """Check that there are networks, class probes and photographs to attack. Raises ConfigError("attack...", ...)."""
    config, names = study.attack, names_of(study.backbones)
    if not config.attacks:
        return
    torchattack()
    for field, asked in (("backbones", {*config.backbones}), ("surrogate", {config.surrogate} - {""})):
        if unknown := asked - set(names):
            raise ConfigError(f"attack.{field}", _some(sorted(unknown)), f"backbones of the study: {', '.join(names)}")
    networks = [name for name in names if is_network(name)]
    targets = config.backbones or networks
    if not targets:
        raise ConfigError("attack.backbones", "none", "controls by name; the study has no network to attack")
    if graphs := [name for name in targets if name.startswith("onnx:")]:
        raise ConfigError("attack.backbones", _some(graphs), "torch networks, since attacks follow their gradient")
    for target in targets if config.attacks == ("transfer",) else ():
        if not config.surrogates(target, networks):
            allowed = f"also another attack; the study has no other network to craft an attack on {target}"
            raise ConfigError("attack.attacks", "transfer", allowed)
    _require_class_probe("attack.attacks", ", ".join(config.attacks), counts, study.probes)
    for split in (TRAIN, TEST):
        labelled = int(counts.count_CS[:-1, split].sum())
        if (found := min(labelled, config.photographs or labelled)) < FEWEST:
            given = f"{found} labelled {SPLITS[split]} photographs"
            raise ConfigError("attack.attacks", given, f"at least {FEWEST} that the class probe gets right")


def check_corruptions(study: Study, counts: SplitCounts) -> None:
    """Check the suite of corruptions and that there is a class probe. Raises ConfigError("corruptions", ...)."""
    if not study.corruptions:
        return
    try:
        made = suite(study.corruptions)
    except ConfigError as error:
        raise ConfigError("corruptions", study.corruptions, error.allowed) from None
    if len(made) < 2 or study.corruptions in study.shift:
        allowed = "a suite with a transformation besides identity, named unlike photographs in [shift]"
        raise ConfigError("corruptions", study.corruptions, allowed)
    if study.finetune.backbones or study.adapt.methods:
        learnt = {name.partition("@")[0] for name in suite(study.suite)[1:] if base.get(name).role == "train"}
        if seen := [name for name in made if name.partition("@")[0] in learnt]:
            allowed = f"a suite without {_some(seen)}, which fine-tuned and adapted backbones are trained on"
            raise ConfigError("corruptions", study.corruptions, allowed)
    _require_class_probe("corruptions", study.corruptions, counts, study.probes)


def _require_class_probe(field: str, given: str, counts: SplitCounts, probes: ProbeConfig) -> None:
    known = set(counts.classes(TRAIN))
    if len(known) < 2:
        allowed = f"none, because it scores the class probe and the study has {len(known)} training classes"
        raise ConfigError(field, given, allowed)
    if "semantic" not in probes.tasks or "linear" not in probes.heads or not probes.save:
        raise ConfigError(field, given, "semantic in probes.tasks, linear in probes.heads and probes.save = true")


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
    _require_class_probe("shift", ", ".join(shift), counts, probes)
    known = set(counts.classes(TRAIN))
    warnings = []
    for name, folder in shift.items():
        photographs = _opened(f"shift.{name}", folder, source or SourceConfig())
        names = photographs.class_names
        count = Counter(None if r.label is None else names[r.label] for r in photographs.records)
        found = sorted(text for text in count if text is not None)
        if not found:
            raise ConfigError(f"shift.{name}", str(folder), "labelled photographs, such as one folder per class")
        if not known & set(found):
            raise ConfigError(f"shift.{name}", _some(found), f"some of the study's classes: {_some(sorted(known))}")
        unknown = [text for text in found if text not in known]
        if unknown or count[None]:
            left_out = sum(count[text] for text in unknown) + count[None]
            kinds = [f"of classes outside the study ({_some(unknown)})"] if unknown else []
            kinds += ["without a class"] if count[None] else []
            warnings.append(f"shift {name}: ignoring {left_out} of {count.total()} photographs: {' or '.join(kinds)}")
    return warnings


def _transformations(names: Sequence[str]) -> list[base.Transformation]:
    load_all()
    return [base.get(name) for name in names]


def _field(counts: SplitCounts, split: str) -> str:
    return "images" if counts.given else f"splits.{split}"


def _some(names: Collection[str]) -> str:
    """The first names, and the number of others."""
    first = ", ".join(list(names)[:_NAMED])
    return first if len(names) <= _NAMED else f"{first} and {len(names) - _NAMED} more"
