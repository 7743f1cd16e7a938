"""The report of a study: sections of all stages."""

from __future__ import annotations

from pathlib import Path

from substyle.engine.report import page
from substyle.engine.report.data import Table, labelled
from substyle.engine.report.page import ReportFiles, plots_of, tables_of
from substyle.engine.report.parts import parts
from substyle.engine.report.section import Section
from substyle.engine.results.model import ResultsDocument
from substyle.engine.stages import registry
from substyle.engine.stages.stage import TrainingStage


def sections_of(results: ResultsDocument) -> list[Section]:
    """Sections of all parts and stages that have results, with labels in place of names of backbones."""
    of_parts = [section for part in parts() for section in part.sections(results)]
    stages = sorted(registry.stages(), key=lambda stage: isinstance(stage, TrainingStage))  # what they add comes last
    return [*of_parts, *(section for stage in stages for section in registry.sections_of(stage, results))]


def write_report(
    results: ResultsDocument, out_dir: Path, *, gallery: Path | None = None, pictures: Path | None = None
) -> ReportFiles:
    """Write ``report.html``, ``tables/*.{csv,tex}`` and ``figures/*.{pdf,png,svg}``.

    The page is self-contained and has no scripts. Sections without numbers are omitted.

    Args:
        results: from :func:`substyle.engine.stages.results.validate_results`.
        out_dir: output folder, created if missing.
        gallery: pictures of variants; see :func:`substyle.engine.report.page.read_gallery`.
        pictures: folder of the pictures of sections; default: ``out_dir``.

    Raises:
        SubstyleError: a gallery file that is not a picture.
    """
    shown = labelled(results)
    return page.write_report(shown, out_dir, sections_of(shown), gallery=gallery, pictures=pictures)


def all_tables(results: ResultsDocument) -> list[Table]:
    """Tables of the report that have rows."""
    shown = labelled(results)
    return tables_of(sections_of(shown))


def all_figures(results: ResultsDocument) -> list[str]:
    """Names of the figures of the report."""
    return [block.name for block in plots_of(sections_of(labelled(results))) if block.name]
