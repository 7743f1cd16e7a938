"""What an embedding knows of any label: scanner, camera, site or year, beside the class and with it held fixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from substyle.engine.config import Study
from substyle.engine.embedding.preflight import SplitCounts
from substyle.engine.stages.execution import config_of, settings_of
from substyle.engine.stages.labels import section
from substyle.engine.stages.labels.config import LabelsConfig
from substyle.engine.stages.labels.scores import Known, labels
from substyle.engine.stages.labels.section import Labels
from substyle.engine.stages.probes import STAGE as PROBES
from substyle.engine.stages.probes import probe_config
from substyle.engine.stages.stage import JSON, JsonStage, Run, Unit
from substyle.engine.store.identity import open_unchanged
from substyle.errors import SubstyleError
from substyle.kernels.dispatch import threads
from substyle.pipelines.sources.metadata import ORIGINS, read_labels


class LabelsStage(JsonStage[LabelsConfig]):
    """Probe original photographs for labels, on all of their embedding and with the mean of their class removed.

    Class probes are scored by value of each label, and on values that were left out of their training.
    """

    name = "labels"
    version = 5
    config = LabelsConfig
    alike = True
    photographs = True
    backbone_results = Labels
    report = section

    def stated(self, stored: Mapping[str, Any]) -> JSON:
        """Digests of the values in place of paths."""
        return {**super().stated(stored), "of": stored.get("values")}

    def check(self, study: Study, counts: SplitCounts) -> list[str]:
        """Raise ConfigError for a list or a column of it that does not exist."""
        config = self.of(study)
        for label, origin in config.origins.items() if config else ():
            if origin.kind == "file":
                read_labels({label: origin}, [], (), "labels.of")
        return []

    def units(self, run: Run, config: LabelsConfig) -> Iterable[Unit]:
        """Backbones with original variants."""
        return [unit for unit in super().units(run, config) if "identity" in run.tables[unit.name].transformations]

    def inputs(self, run: Run, config: LabelsConfig, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
        """Digests of the values, and the settings of probes.

        Of loaded results nothing is read unless the user has named it: results may be somebody else's. Fields of EXIF,
        and columns of photographs that are gone, count as unchanged.
        """
        stored = (before or {}).get("values")
        known = stored if isinstance(stored, dict) else {}
        if before is not None and config_of(self, run) is None:
            return {"values": known if set(known) == set(config.of) else None, "probes": before.get("probes")}
        read = self._read(run, config, "file")
        if before is None:
            read |= self._read(run, config, "column") | self._read(run, config, "exif")
        else:
            with suppress(SubstyleError, OSError):
                read |= self._read(run, config, "column")
        digests = {label: _digest(read[label]) if label in read else known.get(label) for label in config.of}
        return {"values": digests, "probes": settings_of(PROBES, probe_config(run))}

    def compute(self, run: Run, config: LabelsConfig, unit: Unit, folder: Path) -> None:
        """Write the scores."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        known = {label: own for kind in ORIGINS for label, own in self._read(run, config, kind).items()}
        with threads(1), threadpool_limits(1):  # the same numbers on any number of cores
            self.write(folder, labels(run.tables[unit.name], known, config, probe_config(run)))

    def _read(self, run: Run, config: LabelsConfig, kind: str) -> Known:
        """Values of labels of one kind of origin, read once in a run."""
        origins = {label: origin for label, origin in config.origins.items() if origin.kind == kind}

        def read() -> Known:
            keys = {key for table in run.tables.values() for key in table.keys}
            return read_labels(
                origins, open_unchanged(run.store, run.source) if origins and kind != "file" else [], keys, "labels.of"
            )

        return dict(run.once((self.name, kind, *sorted(config.of.items())), read))

    def lines(self, result: JSON) -> Iterator[str]:
        """Accuracy or R² of each label."""
        for label, own in result["by_label"].items():
            number = own.get("r2") if own["kind"] == "number" else own.get("accuracy")
            if number is None:
                yield f"{label}  not predicted: {own['values']} values, {own['missing']} photographs without one"
            else:
                yield f"{label}  {'R² ' if own['kind'] == 'number' else ''}{100 * number['value']:.1f}"


STAGE = LabelsStage()


def _digest(values: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(values.items())).encode()).hexdigest()[:16]
