"""The table of probes of tokens and its sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.engine.report.real import real_results

from substyle.engine.extensions.attentive.section import HEADS
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


def test_the_page_has_their_section(results: dict[str, Any], tmp_path: Path) -> None:
    text = write_report(validate_results(results), tmp_path).html.read_text(encoding="utf-8")
    assert 'id="attentive"' in text
    assert "clearly better in 1 of 3 scores" in text
    assert (tmp_path / "tables" / "attentive.csv").is_file()
    del results["backbones"][ALPHA]["attentive"], results["attentive"]
    assert 'id="attentive"' not in write_report(validate_results(results), tmp_path).html.read_text(encoding="utf-8")
