"""Transfer between domains in the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.engine.report.real import BACKBONE, estimate, real_results

from substyle.engine.stages.results import validate_results
from substyle.engine.stages.shift.domains_section import domains, domains_summary
from substyle.engine.study.report import write_report
from substyle.errors import SubstyleError


def test_the_worst_pair_and_transformation_are_named(tmp_path: Path) -> None:
    results = real_results()
    assert domains(validate_results(results)).rows == ()

    def cell(accuracy: float, fog: float | None) -> dict[str, object]:
        return {
            "accuracy": estimate(accuracy, accuracy - 0.1, accuracy + 0.1),
            "by_transformation": {"fog": fog, "jpeg": 0.5},
        }

    transformation = {
        "photos": {"photos": cell(0.9, 0.8), "x-rays": cell(0.5, None)},
        "x-rays": {"photos": cell(0.3, 0.2), "x-rays": cell(0.7, 0.6)},
    }
    class_ = {
        "photos": {"photos": {"original": estimate(0.9), "transformed": estimate(0.4), "images": 9}, "x-rays": None}
    }
    results["backbones"][BACKBONE]["domains"] = {"transformation": transformation, "class": class_}
    table = domains(validate_results(results))
    assert [column.heading for column in table.columns[3:]] == ["photos", "x-rays"]
    assert table.rows[1] == (
        BACKBONE,
        "Transformation",
        "x-rays",
        (0.3, pytest.approx(0.2), 0.4),
        (0.7, 0.6, pytest.approx(0.8)),
    )
    assert [row[1] for row in table.rows[2:]] == ["Class", "Class, transformed"]
    text = domains_summary(validate_results(results))
    assert "from x-rays to photos" in text
    assert "−60.0 points" in text
    assert "a probe of photos, the lowest of 2 differences, most for fog (−60.0, the lowest of 2)." in text
    transformation["x-rays"]["photos"]["converged"] = False
    assert "from photos to x-rays" in domains_summary(validate_results(results))
    transformation["x-rays"]["x-rays"]["converged"] = False
    assert domains_summary(validate_results(results)) == ""
    assert 'id="domains"' in write_report(validate_results(results), tmp_path).html.read_text()
    transformation["photos"]["x-rays"]["accuracy"] = {"value": "0.5"}
    with pytest.raises(SubstyleError):
        validate_results(results)
