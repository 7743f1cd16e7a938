"""Similarity of backbones in the report."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.engine.report.real import drop, estimate, real_results

from substyle.engine.stages.results import validate_results
from substyle.engine.stages.shift.section import shift_plots, shift_summary
from substyle.engine.stages.similarity.section import similarity, similarity_maps, similarity_summary
from substyle.engine.study.report import write_report
from substyle.errors import SubstyleError


@pytest.mark.slow
@pytest.mark.usefixtures("figures")
def test_matrices_are_symmetric_and_the_sentence_names_trained_backbones(tmp_path: Path) -> None:
    results = drop(real_results("alpha", "beta", "control:pixels"), "similarity")
    assert similarity_maps(validate_results(results)) == ((), [])
    control, (a, b) = "control:pixels", list(validate_results(results).real())[:2]
    pair: dict[str, Any] = {"cka": estimate(0.256, 0.2, 0.3), "rsa": None}
    results["similarity"] = {
        "pairs": {control: {a: {"cka": estimate(0.9)}, b: {"cka": estimate(0.8)}}, b: {a: pair}},
        "sampled": {"images": 7, "variants": 31, "rsa_variants": 30},
    }
    assert similarity(validate_results(results)).rows[2] == (b, a, (0.256, 0.2, 0.3), None, None)
    (panel,), names = similarity_maps(validate_results(results))
    assert (panel.name, set(names), names[-1]) == ("CKA", {a, b, control}, control)
    assert isinstance(panel.draw, partial)
    drawn = panel.draw.keywords
    assert drawn["names"] == names
    assert (drawn["value_CC"] == drawn["value_CC"].T).all()
    assert drawn["cells"][names.index(a)][names.index(b)] == "0.26"
    assert similarity_summary(validate_results(results)) == f"Compared are {b} and {a} (CKA 0.256, 0.200 to 0.300)."
    page = write_report(validate_results(results), tmp_path)
    shown = page.html.read_text().partition('id="similarity"')[2].partition("</section>")[0]
    assert shown.count(">0.26</text>") == 2
    assert {path.name for path in page.figures} >= {"similarity.pdf", "similarity.png"}
    pair["cka"]["value"] = "0.2"
    with pytest.raises(SubstyleError, match=r"similarity\.pairs.*cka\.value"):
        validate_results(results)


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("robustness", [{}]),
        ("robustness", [{"shift": None, "spearman": estimate(0.5), "backbones": None}]),
        (
            "robustness",
            [
                {
                    "shift": "night",
                    "spearman": estimate(0.5),
                    "backbones": {"a": {"sensitivity": estimate(0.1), "loss": estimate(0.2)}},
                }
            ],
        ),
        ("similarity", {"pairs": {"a": None}}),
        ("similarity", {"pairs": {"a": {"b": None}}, "sampled": None}),
    ],
)
def test_incomplete_results_are_shown_without_what_is_missing(key: str, part: object) -> None:
    results = validate_results(real_results() | {key: part})
    for shown in (shift_plots, shift_summary, similarity, similarity_maps, similarity_summary):
        assert shown(results) is not None
