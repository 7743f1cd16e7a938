from types import ModuleType
from typing import Any

import pytest

from substyle.engine.report.findings import findings, portrait

TWO = {"alpha": (0.9, 0.9), "beta": (0.9, 0.9)}


def fine(results: dict[str, Any], name: str, accuracy: float, half: float = 0.01) -> None:
    for scores in results["backbones"][name]["fine"].values():
        scores |= {"accuracy": accuracy, "ci95": [accuracy - half, accuracy + half]}


def text(results: dict[str, Any], title: str) -> str:
    return next(finding.text for finding in findings(results) if finding.title == title)


def has(results: dict[str, Any], title: str) -> bool:
    return any(finding.title == title for finding in findings(results))


def test_style_names_the_best_with_interval_and_chance(fake: ModuleType) -> None:
    results = fake.fake_results(TWO)
    results["comparisons"] = []
    fine(results, "alpha", 0.80)
    fine(results, "beta", 0.90)
    said = text(results, "Style")
    assert "probe on beta names which of 31 transformations" in said
    assert "90.0% (95% interval 89.0–91.0; chance 3.2%)" in said
    assert "Next is alpha, 10.0 points behind." in said


def test_overlapping_intervals_are_never_called_a_lead(fake: ModuleType) -> None:
    results = fake.fake_results(TWO)
    results["comparisons"] = []
    fine(results, "alpha", 0.90)
    fine(results, "beta", 0.915)
    said = text(results, "Style")
    assert "The intervals do not tell it apart from alpha." in said
    assert "behind" not in said


@pytest.mark.parametrize(("a", "b"), [("alpha", "beta"), ("beta", "alpha")])
def test_a_paired_interval_decides_where_there_is_one(fake: ModuleType, a: str, b: str) -> None:
    results = fake.fake_results(TWO)
    fine(results, "alpha", 0.90)
    fine(results, "beta", 0.915)
    sign = 1 if a == "beta" else -1

    def compare(low: float, high: float) -> None:
        ends = sorted([sign * low, sign * high])
        row = {"task": "fine", "head": "linear", "a": a, "b": b, "difference": sign * 0.015, "ci95": ends}
        results["comparisons"] = [row]

    compare(0.005, 0.025)  # single intervals overlap, the paired one is clear
    assert "Next is alpha, 1.5 points behind (+0.5 to +2.5)." in text(results, "Style")
    compare(-0.002, 0.032)
    assert "do not tell it apart from alpha" in text(results, "Style")


def test_a_comparison_of_another_score_is_not_used(fake: ModuleType) -> None:
    results = fake.fake_results(TWO)
    fine(results, "alpha", 0.90)
    fine(results, "beta", 0.915)
    row = {"task": "fine", "head": "linear", "a": "beta", "b": "alpha", "difference": 0.3, "ci95": [0.2, 0.4]}
    for other in ({}, {"metric": "something", "difference": 0.015}, {"head": "mlp", "difference": 0.015}):
        results["comparisons"] = [row | other]
        assert "do not tell it apart from alpha" in text(results, "Style")
    results["comparisons"] = [row | {"metric": "accuracy", "difference": 0.015, "ci95": [0.01, 0.02]}]
    assert "Next is alpha" in text(results, "Style")


def test_scores_without_intervals_lead_nobody(fake: ModuleType) -> None:
    results = fake.fake_results(TWO)
    results["comparisons"] = []
    for name, accuracy in (("alpha", 0.2), ("beta", 0.9)):
        fine(results, name, accuracy)
        results["backbones"][name]["fine"]["linear"]["ci95"] = None
    assert "do not tell it apart" in text(results, "Style")


def test_a_control_as_good_as_the_best_is_said(fake: ModuleType) -> None:
    results = fake.fake_results({"alpha": (0.9, 0.9), "control:pixels": (0.4, 0.3)})
    results["comparisons"] = []
    fine(results, "alpha", 0.70)
    fine(results, "control:pixels", 0.40)
    assert "The strongest control, control:pixels, reaches 40.0%." in text(results, "Style")
    fine(results, "control:pixels", 0.695)
    assert "reaches 69.5%, which is not clearly less." in text(results, "Style")


def test_a_gap_that_may_be_none_and_a_score_at_chance_are_said(fake: ModuleType) -> None:
    results = fake.fake_results({"alpha": (0.9, 0.9)})
    scores = results["backbones"]["alpha"]["coarse"]["linear"]
    assert "which may be none" not in text(results, "New styles")
    assert "above chance" not in text(results, "New styles")
    scores |= {"held_out": 0.11, "held_out_ci95": [0.09, 0.13], "gap": 0.01, "gap_ci95": [-0.01, 0.03]}
    said = text(results, "New styles")
    assert "a gap of 1.0 points (−1.0 to +3.0), which may be none" in said
    assert "That is not clearly above chance." in said


def test_multitask_says_only_what_its_intervals_say(fake: ModuleType) -> None:
    results = fake.fake_results(TWO)
    for name, interval in (("alpha", [-0.03, -0.01]), ("beta", [-0.02, 0.01])):
        difference = results["backbones"][name]["multitask"]["difference"]
        difference["fine"] = {"value": sum(interval) / 2, "ci95": interval}
        difference["semantic"] = {"value": 0.0, "ci95": [-0.01, 0.01]}
    said = text(results, "Both at once")
    assert "style is clearly worse on alpha (−3.0 to −1.0 points)" in said
    assert "style shows no clear difference on 1 other backbone;" in said
    assert "class shows no clear difference on 2 backbones." in said


def test_unfinished_probes_are_counted(fake: ModuleType) -> None:
    results = fake.fake_results({"alpha": (0.9, 0.9)}, heads=("linear",))
    for task in ("fine", "coarse", "semantic"):
        results["backbones"]["alpha"][task]["linear"]["improving"] = False
    assert not has(results, "Unfinished")
    results["backbones"]["alpha"]["fine"]["linear"]["improving"] = True
    assert text(results, "Unfinished").startswith("1 probe was still improving")


def test_missing_parts_are_not_spoken_of(fake: ModuleType) -> None:
    results = fake.fake_results(
        {"alpha": (0.9, 0.9)}, suite=fake.SUITE[:3], classes=(), multitask=False, analysis=False, heads=("linear",)
    )
    assert {finding.title for finding in findings(results)} <= {"Style", "Unfinished"}
    for backbone in results["backbones"].values():
        backbone["fine"] = backbone["coarse"] = None
    assert findings(results) == []
    assert portrait(results, "alpha") == []


def test_many_backbones_do_not_make_long_sentences(fake: ModuleType) -> None:
    results = fake.fake_results({f"backbone {i}": (0.9, 0.9) for i in range(12)})
    results["comparisons"] = []
    assert max(len(finding.text) for finding in findings(results)) < 900
    assert "more" in text(results, "Both at once")


def test_a_portrait_holds_the_backbones_own_numbers(fake: ModuleType) -> None:
    results = fake.fake_results(TWO)
    fine(results, "alpha", 0.8125)
    lines = portrait(results, "alpha")
    assert lines[0] == "Names the transformation in 81.2% (80.2–82.2) of cases."
    assert len(lines) == 4
