"""Neighbours, geometry and clusters of each backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from substyle.engine.analysis.neighbors import search_device
from substyle.engine.analysis.run import analyze
from substyle.engine.config import AnalysisConfig
from substyle.engine.stages.analysis import section
from substyle.engine.stages.stage import JSON, JsonStage, Run, Unit


class AnalysisStage(JsonStage[AnalysisConfig]):
    """Analyze neighbours, geometry and clusters of backbones."""

    name = "analysis"
    version = 3
    config = AnalysisConfig
    alike = True
    at_once = staticmethod(lambda config: search_device(config.device))
    report = section

    def compute(self, run: Run, config: AnalysisConfig, unit: Unit, folder: Path) -> None:
        """Write the analysis."""
        self.write(folder, analyze(run.tables[unit.name], config, quiet=run.quiet))

    def of_backbone(self, result: JSON) -> Mapping[str, Any]:
        """All results."""
        return result

    def lines(self, result: JSON) -> Iterator[str]:
        """Accuracy of k-NN classifiers of transformations."""
        shares = (f"{k}-NN {v['value']:.3f}" for k, v in result["knn"]["transformation"].items() if v is not None)
        yield f"transformation: {'  '.join(shares)}"


STAGE = AnalysisStage()
