"""Similarity of backbones: one result of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from substyle.engine.analysis.similarity import similarity
from substyle.engine.config import AnalysisConfig, Study
from substyle.engine.report.section import Section
from substyle.engine.results.model import ResultsDocument
from substyle.engine.stages.analysis import STAGE as ANALYSIS
from substyle.engine.stages.similarity.section import Similarity, sections
from substyle.engine.stages.stage import JSON, JsonStage, Run, Unit
from substyle.engine.stages.stamp import StaleError, Stamp, note_of, table_digest
from substyle.engine.store.table import open_tables


class SimilarityStage(JsonStage[AnalysisConfig]):
    """Compare the embeddings of backbones in pairs; of fewer than two, nothing."""

    name = "similarity"
    config = AnalysisConfig
    document_results = Similarity

    def of(self, study: Study) -> AnalysisConfig:
        """The settings of the analysis."""
        return study.analysis

    def units(self, run: Run, config: AnalysisConfig) -> Iterable[Unit]:
        """All backbones together."""
        return [Unit()] if len(run.tables) > 1 else []

    def reported(self, run: Run) -> Iterable[Unit]:
        """All backbones together, if at least two of them were compared."""
        note = note_of(run.out / self.name)
        known = () if note is None else note.stamp.settings.get("backbones", ())
        return [Unit()] if len(set(known).intersection(run.tables)) > 1 else []

    def settings(self, config: AnalysisConfig) -> JSON:
        """The settings of the analysis."""
        return ANALYSIS.settings(config)

    def stamp(self, run: Run, config: AnalysisConfig, unit: Unit, before: Mapping[str, Any] | None = None) -> Stamp:
        """The stamp with digests of all embeddings that were compared."""
        first = next(iter(run.tables.values()))
        tables = list(run.tables.values())
        if before is not None:
            if not set(before["backbones"]) <= {entry.name for entry in run.store.backbones()}:
                raise StaleError(f"{self.folder(run, unit)}: outdated, of another store", self.command(run))
            tables = open_tables(run.store, list(before["backbones"]), first.transformations)
        digests = {table.backbone: table_digest(run.store, table) for table in tables}
        return Stamp.of(run.store, tables[0], {**self.settings(config), "backbones": digests})

    def compute(self, run: Run, config: AnalysisConfig, unit: Unit, shared: None, folder: Path) -> None:
        """Write the similarities."""
        self.write(folder, similarity(list(run.tables.values()), config, quiet=run.quiet))

    def load(self, run: Run, folder: Path) -> JSON:
        """Load the similarities of pairs of the backbones of a run."""
        found = super().load(run, folder)
        pairs = {a: {b: pair for b, pair in row.items() if b in run.tables} for a, row in found["pairs"].items()}
        return found | {"pairs": {a: row for a, row in pairs.items() if a in run.tables and row}}

    def of_document(self, run: Run, document: ResultsDocument) -> Mapping[str, Any]:
        """The similarities, if there are any."""
        found = next(iter(run.results.get(self.name, {}).values()), None)
        return {self.name: found} if found else {}

    def sections(self, results: ResultsDocument) -> Iterator[Section]:
        """Sections of the report."""
        return sections(results)


STAGE = SimilarityStage()
