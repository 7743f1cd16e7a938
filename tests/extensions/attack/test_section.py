"""Tables and the sentence of attacks."""

from __future__ import annotations

from typing import Any

import pytest
from tests.engine.report.real import drop, real_results

from substyle.engine.extensions.attack.section import attack_detection, attack_summary, attacks
from substyle.engine.results.model import entry_of
from substyle.engine.stages.results import validate_results
from substyle.engine.study.report import all_tables
from substyle.errors import SubstyleError


def detected(auroc: float) -> dict[str, Any]:
    return {"auroc": entry_of(auroc, (auroc - 0.05, min(auroc + 0.05, 1.0))), "tpr": entry_of(0.5, (0.4, 0.6))}


def entry(success: float, l2: float, **detection: float) -> dict[str, Any]:
    return {
        **{"success": entry_of(success, (max(success - 0.1, 0), min(success + 0.1, 1))), "accuracy": 0.3},
        **{"linf": 8.0, "l2": l2, "named": {"jpeg": 0.75, "identity": 0.25}},
        "detection": {how: detected(auroc) for how, auroc in detection.items()},
    }


@pytest.fixture
def results() -> dict[str, Any]:
    made: dict[str, Any] = drop(real_results(), "attack")
    made["backbones"][next(iter(made["backbones"]))]["attack"] = {
        "accuracy": 0.9,
        "named": {"identity": 1.0},
        "attacks": {
            "fgsm@1": entry(0.2, 300, detector=0.99),
            "pgd@1": entry(0.8, 200, transformation=0.61, detector=0.9, other_attacks=0.83, knn=0.7, squeezing=0.88),
            "pgd@8": entry(1.0, 2000, transformation=0.7, detector=1.0, other_attacks=0.95, knn=0.9),
            "adaptive@8": entry(0.97, 2100, detector=0.55),
            "noise@8": entry(0.0, 2500, detector=0.6),
        },
    }
    return made


def test_the_sentence_names_the_least_visible_attack_that_succeeds(results: dict[str, Any]) -> None:
    text = attack_summary(validate_results(results))
    assert "2 of 3 attacks on" in text  # noise is no attack, and the adaptive one has its own clause
    assert "pgd@1, which is detected" in text
    assert "the transformation probe 61.0 (56.0–66.0), a detector trained on other attacks 83.0" in text
    assert "the best of 2 baselines by this AUROC (Squeezing) 88.0" in text
    assert "succeeds on 97.0 %, and lowers it to 55.0 (50.0–60.0)" in text


def test_tables(results: dict[str, Any]) -> None:
    success, auroc, tpr = attacks(validate_results(results)), *attack_detection(validate_results(results))
    assert [row[1] for row in success.rows] == ["none", "fgsm@1", "pgd@1", "pgd@8", "adaptive@8", "noise@8"]
    assert [row[-1] for row in success.rows[1:]] == [
        *("succeeds on less than half", "", "", "", "no attack: random signs")
    ]
    assert success.rows[1][6] == "jpeg 75.0 %, identity 25.0 %"
    assert [row[1] for row in auroc.rows] == ["fgsm@1 *", "pgd@1", "pgd@8", "adaptive@8", "noise@8 *"]
    assert [column.name for column in auroc.columns[2:]] == [
        "transformation",
        "detector",
        "other_attacks",
        "knn",
        "squeezing",
    ]
    assert auroc.rows[1][2] == (0.61, pytest.approx(0.56), pytest.approx(0.66))
    assert tpr.rows[0][3] == (0.5, 0.4, 0.6)
    validate_results(results)
    assert {"attacks", "attack_detection", "attack_tpr"} <= {
        table.name for table in all_tables(validate_results(results))
    }


def test_without_attacks_there_is_nothing() -> None:
    made = drop(real_results(), "attack")
    assert not attacks(validate_results(made)).rows
    assert not any(table.rows for table in attack_detection(validate_results(made)))
    assert attack_summary(validate_results(made)) == ""


def test_an_invalid_number_is_refused(results: dict[str, Any]) -> None:
    name = next(iter(results["backbones"]))
    results["backbones"][name]["attack"]["attacks"]["pgd@1"]["detection"]["transformation"]["auroc"]["value"] = 1.5
    with pytest.raises(SubstyleError, match=r"pgd@1.*auroc"):
        validate_results(results)
