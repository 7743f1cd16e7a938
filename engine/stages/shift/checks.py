"""Checks of other photographs before anything is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from substyle.engine.config import Study
from substyle.engine.embedding.blobs import require_shown
from substyle.engine.embedding.plan import limited
from substyle.engine.embedding.preflight import SplitCounts, check_splits, count_splits, opened, require_class_probe
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.stages import registry
from substyle.engine.stages.stage import TrainingStage
from substyle.engine.store.layout import TRAIN
from substyle.errors import ConfigError, abbreviated
from substyle.pipelines.sources import SourceConfig
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.names import family
from substyle.pipelines.transforms.registry import suite


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
    if any(isinstance(stage, TrainingStage) and stage.of(study) is not None for stage in registry.stages()):
        learnt = {family(name) for name in suite(study.suite)[1:] if base.get(name).role == "train"}
        if seen := [name for name in made if family(name) in learnt]:
            allowed = f"a suite without {abbreviated(seen)}, which fine-tuned and adapted backbones are trained on"
            raise ConfigError("corruptions", study.corruptions, allowed)
    require_class_probe("corruptions", study.corruptions, counts, study.probes)


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


def check_domains(study: Study) -> None:
    """Raise ConfigError if probes of other domains cannot be trained, or their photographs cannot be opened."""
    if study.domains and "linear" not in study.probes.heads:
        raise ConfigError("domains", ", ".join(study.domains), "linear in probes.heads")
    for name, folder in study.domains.items():
        if name == study.name:
            raise ConfigError(f"domains.{name}", str(folder), "another name than the study's, which is a domain too")
        source = opened(f"domains.{name}", folder, study.source)
        require_shown(source, study.settings().transformations, f"domains.{name}")
        records = limited(source.records, study.seed, study.limit)
        try:
            check_splits(count_splits(records, source, seed=study.seed, fractions=study.splits.fractions))
        except ConfigError as error:
            raise ConfigError(f"domains.{name}", error.given, error.allowed) from None
