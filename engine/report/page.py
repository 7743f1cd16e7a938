"""The report: one self-contained HTML page, tables in four formats, figures for papers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from substyle.engine.report import findings, heat, sections, tables
from substyle.engine.report.gallery import read_gallery
from substyle.engine.report.paper import save_figures
from substyle.engine.report.results import Results, dig, heads, ordered, real, transformations, validate_results
from substyle.engine.report.table_files import write_tables
from substyle.engine.report.templating import write_page


@dataclass(frozen=True)
class ReportFiles:
    """What was written: the page, the tables, the figures."""

    html: Path
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]


def write_report(results: Results, out_dir: Path, *, gallery: Path | None = None) -> ReportFiles:
    """Write ``report.html``, ``tables/*.{csv,json,parquet,tex}`` and ``figures/*.{pdf,png}`` into a folder.

    The page needs no network and no script. Sections without numbers are left out.

    Args:
        results: a results.json; see :func:`substyle.engine.report.results.validate_results`.
        out_dir: the folder, made when it is not there.
        gallery: pictures of the variants; see :func:`substyle.engine.report.gallery.read_gallery`.

    Raises:
        SubstyleError: results that do not fit the schema, or a gallery file that is no picture.
    """
    validate_results(results)
    made = tables.all_tables(results)
    page = write_page(out_dir / "report.html", "report.html.j2", _context(results, gallery))
    return ReportFiles(
        html=page,
        tables=tuple(write_tables(made, out_dir / "tables")),
        figures=tuple(save_figures(results, out_dir / "figures")),
    )


def _context(results: Results, gallery: Path | None) -> dict[str, Any]:
    names = ordered(results)
    compared = tables.comparisons(results)
    return {
        "results": results,
        "names": names,
        "real": real(results),
        "controls": [name for name in names if name not in real(results)],
        "heads": heads(results),
        "dig": dig,
        "coarse_of": {row["name"]: row["coarse"] for row in results["transformations"]},
        "findings": findings.findings(results),
        "claims": tables.claims(results),
        "redrawn": tables.redrawn(results),
        "equal_width": tables.equal_width(results),
        "portraits": [(name, findings.portrait(results, name)) for name in real(results)],
        "gallery": read_gallery(gallery, transformations(results)),
        "dot_plots": sections.dot_plots(results),
        "overview": tables.overview(results),
        "style_tables": heat.style_tables(results),
        "fine_matrices": sections.matrices(results, "fine"),
        "coarse_matrices": sections.matrices(results, "coarse"),
        "new_style_tables": heat.new_style_tables(results, "held_out"),
        "seen_tables": heat.new_style_tables(results, "train"),
        "rotation_tables": heat.rotation_tables(results),
        "substance_tables": heat.substance_tables(results),
        "multitask": tables.multitask(results),
        "knn": sections.knn_beside_probes(results),
        "balance": sections.balance_bars(results),
        "neighbours": tables.neighbours(results),
        "geometry": heat.geometry_tables(results),
        "shift": sections.shift_table(results),
        "training": tables.training(results),
        "unconverged": findings.unconverged(results),
        "comparisons": compared,
        "comparisons_real": sections.comparisons_between(compared, real(results), (*heads(results), "")[0]),
    }
