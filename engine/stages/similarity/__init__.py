"""Similarity of backbones: one result of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from substyle.engine.analysis.similarity import similarity
from substyle.engine.config import AnalysisConfig, Study
from substyle.engine.results.model import ResultsDocument
from substyle.engine.stages.similarity import section
from substyle.engine.stages.similarity.section import Similarity
from substyle.engine.stages.stage import JSON, JsonStage, Run, Unit


class SimilarityStage(JsonStage[AnalysisConfig]):
    """Compare the embeddings of backbones in pairs; of fewer than two, nothing."""

    name = "similarity"
    version = 2
    config = AnalysisConfig
    together = True
    document_results = Similarity
    report = section

    def of(self, study: Study) -> AnalysisConfig:
        """The settings of the analysis."""
        return study.analysis

    def units(self, run: Run, config: AnalysisConfig) -> Iterable[Unit]:
        """All backbones together."""
        return [Unit()] if len(run.tables) > 1 else []

    def compute(self, run: Run, config: AnalysisConfig, unit: Unit, folder: Path) -> None:
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


STAGE = SimilarityStage()
