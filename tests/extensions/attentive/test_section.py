"""The table of probes of tokens and its sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.engine.report.real import real_results

from substyle.engine.extensions.attentive.section import HEADS, attentive, attentive_summary
from substyle.engine.results.model import entry_of
from substyle.engine.stages.results import validate_results
from substyle.engine.study.report import write_report

ALPHA = "alpha"


def difference(head: str, task: str, metric: str, value: float, half: float) -> dict[str, Any]:
    row: dict[str, Any] = {"task": task, "metric": metric, "head": f"{head}-linear", "a": ALPHA, "b": ALPHA}
    ends, two_way = [[value - share * half, value + share * half] for share in (1, 3)]
    if metric == "held_out":  # over transformations too
        own = entry_of(value, two_way, one_way=ends, se=half / 2)
    else:
        own = entry_of(value, ends, two_way=two_way, se=half / 2)
    return row | {"difference": own, "p": 0.01, "p_holm": 0.01}


@pytest.fixture
def results() -> dict[str, Any]:
    made: dict[str, Any] = real_results(ALPHA, "control:pixels")
    backbone = made["backbones"][ALPHA]
    backbone["attentive"] = {"tokens": 49, "dim": 384} | {
        task: {head: dict(backbone[task]["linear"]) for head in HEADS} for task in ("transformation", "kind", "class")
    }
    rows = [
        difference("attentive", "transformation", "accuracy", 0.04, 0.01),
        difference("attentive", "class", "original", -0.03, 0.02),
        difference("attentive", "kind", "held_out", 0.02, 0.01),  # clear over photographs alone
        difference("efficient", "transformation", "accuracy", 0.05, 0.01),
    ]
    made["attentive"] = {"differences": rows}
    validate_results(made)
    return made


def test_all_heads_stand_beside_each_other(results: dict[str, Any]) -> None:
    table = attentive(validate_results(results))
    assert {row[0] for row in table.rows} == {ALPHA}
    assert [row[2] for row in table.rows] == [
        "Transformation",
        "Kind, seen",
        "Kind, held out",
        "Class",
        "Class, transformed",
    ]
    names = [column.name for column in table.columns]
    assert names[3:6] == ["linear", "attentive", "efficient"]
    style, held_out = (dict(zip(names, table.rows[place], strict=True)) for place in (0, 2))
    backbone = results["backbones"][ALPHA]["attentive"]
    for head in ("linear", "attentive"):
        accuracy = backbone["transformation"][head]["accuracy"]
        assert style[head] == (accuracy["value"], accuracy["low"], accuracy["high"])
    assert style["tokens"] == "49 × 384"
    assert style["attentive_gain"] == (0.04, 0.03, 0.05)
    assert held_out["attentive_gain"] == pytest.approx((0.02, -0.01, 0.05))  # over transformations too
    assert held_out["efficient_gain"] is None


def test_the_sentence_counts_clear_differences(results: dict[str, Any]) -> None:
    text = attentive_summary(validate_results(results))
    assert "attentive probes are clearly better in 1 of 3 scores, most for transformation of alpha (+4.0 points" in text
    assert "and clearly worse in 1, most for class of alpha (−3.0 points, −5.0 to −1.0)" in text
    assert "efficient probes are clearly better in 1 of 1 scores" in text
    results["attentive"]["differences"][-1]["p_holm"] = 0.06  # of as many backbones, one such interval is by chance
    assert "efficient probes are clearly better in 0 of 1 scores" in attentive_summary(validate_results(results))


def test_probes_that_have_not_converged_are_not_compared(results: dict[str, Any]) -> None:
    for task in ("transformation", "kind", "class"):
        for head in ("attentive", "efficient"):
            results["backbones"][ALPHA]["attentive"][task][head]["converged"] = False
    assert "are not compared" in attentive_summary(validate_results(results))
    assert attentive(validate_results(results)).rows[0][-1] == "not attentive, efficient"


def test_the_page_has_their_section(results: dict[str, Any], tmp_path: Path) -> None:
    text = write_report(validate_results(results), tmp_path).html.read_text(encoding="utf-8")
    assert 'id="attentive"' in text
    assert "clearly better in 1 of 3 scores" in text
    assert (tmp_path / "tables" / "attentive.csv").is_file()
    del results["backbones"][ALPHA]["attentive"], results["attentive"]
    assert 'id="attentive"' not in write_report(validate_results(results), tmp_path).html.read_text(encoding="utf-8")
