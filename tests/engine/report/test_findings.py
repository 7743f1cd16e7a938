from typing import Any

import pytest
from tests.engine.report.real import (
    all_converged,
    estimate,
    of_probes,
    real_results,
    shortened,
    with_heads,
    without_classes,
)

from substyle.engine.probes.outcomes import GENERAL
from substyle.engine.report.answers import answer
from substyle.engine.report.data import show
from substyle.engine.report.findings import findings, floors, portrait, standing, unconverged, unseen
from substyle.engine.stages.results import validate_results

TWO = ("alpha", "beta")
THREE = (*TWO, "control:statistics")


def transformation(results: dict[str, Any], name: str, accuracy: float, half: float = 0.01) -> None:
    for scores in results["backbones"][name]["transformation"].values():
        scores["accuracy"] = estimate(accuracy, accuracy - half, accuracy + half)


def compared(results: dict[str, Any], task: str, metric: str, a: str, b: str, difference: float, p: float) -> None:
    """Replace one comparison of linear heads: ±2 points over photographs, ±5 over transformations too."""
    rows = [r for r in results["comparisons"] if (r["task"], r["metric"], {r["a"], r["b"]}) != (task, metric, {a, b})]
    one_way, two_way, ci90 = ([difference - half, difference + half] for half in (0.02, 0.05, 0.008))
    general = (task, metric) in GENERAL
    made = estimate(difference, *(two_way if general else one_way)) | {"ci90": ci90}
    made |= {"one_way": one_way} if general else {"two_way": two_way}
    row = {"task": task, "metric": metric, "head": "linear", "a": a, "b": b, "difference": made, "p_holm": p}
    results["comparisons"] = [*rows, row]


def text(results: dict[str, Any], title: str) -> str:
    return next(finding.text for finding in findings(validate_results(results)) if finding.title == title)


def has(results: dict[str, Any], title: str) -> bool:
    return any(finding.title == title for finding in findings(validate_results(results)))


@pytest.mark.parametrize(("a", "b"), [("alpha", "beta"), ("beta", "alpha")])
def test_a_corrected_test_decides_what_is_above(a: str, b: str) -> None:
    results = real_results(*TWO)
    transformation(results, "alpha", 0.80)
    transformation(results, "beta", 0.90)
    sign = 1 if a == "beta" else -1
    compared(results, "transformation", "accuracy", a, b, sign * 0.1, 0.049)
    said = text(results, "Transformation")
    assert "probe on beta" in said
    assert "33 transformations" in said
    assert "90.0% (95% interval 89.0–91.0; 32 photographs and 33 transformations; chance 3.0%)" in said
    assert "Next is alpha, 10.0 points behind (+8.0 to +12.0)." in said
    compared(results, "transformation", "accuracy", a, b, sign * 0.1, 0.051)
    said = text(results, "Transformation")
    assert "No clear difference between beta and alpha (+10.0 points, +8.0 to +12.0; p = 0.05)." in said
    assert "behind" not in said
    assert "Equivalent" not in said


def test_what_nobody_compared_is_not_above() -> None:
    results = real_results(*TWO)
    transformation(results, "alpha", 0.2)
    transformation(results, "beta", 0.9)
    results["comparisons"] = [{**row, "p_holm": None} for row in results["comparisons"]]
    assert "No clear difference between beta and alpha (" in text(results, "Transformation")
    results["comparisons"] = []
    assert text(results, "Transformation").endswith("Not compared with beta: alpha.")


def test_no_clear_difference_is_equivalence_only_within_the_margin() -> None:
    results = real_results(*TWO)
    transformation(results, "alpha", 0.900)
    transformation(results, "beta", 0.901)
    compared(results, "transformation", "accuracy", "beta", "alpha", 0.001, 0.8)  # 90 % interval −0.7 to 0.9 points
    said = text(results, "Transformation")
    assert "between beta and alpha (+0.1 points, −1.9 to +2.1; p = 0.80). Equivalent within 1 point: alpha." in said
    compared(results, "transformation", "accuracy", "beta", "alpha", 0.003, 0.8)  # −0.5 to 1.1
    assert "Equivalent" not in text(results, "Transformation")


def test_ranks_are_what_the_tests_leave_open() -> None:
    results = real_results(*THREE)
    transformation(results, "alpha", 0.9)
    transformation(results, "beta", 0.8)
    transformation(results, "control:statistics", 0.7)
    compared(results, "transformation", "accuracy", "alpha", "beta", 0.1, 0.2)
    compared(results, "transformation", "accuracy", "alpha", "control:statistics", 0.2, 0.01)
    compared(results, "transformation", "accuracy", "control:statistics", "beta", -0.1, 0.3)
    found = standing(validate_results(results), "transformation", "linear", "accuracy")
    assert [found.rank(name) for name in THREE] == [(1, 2), (1, 3), (2, 3)]
    assert "Ranks: alpha 1–2, beta 1–3 and control:statistics 2–3." in text(results, "Transformation")


def test_a_control_that_leads_or_is_level_is_said_first() -> None:
    results = real_results("alpha", "control:statistics")
    pair = ("alpha", "control:statistics")
    transformation(results, "alpha", 0.70)
    transformation(results, "control:statistics", 0.40)
    compared(results, "transformation", "accuracy", *pair, 0.3, 0.001)
    assert "the strongest control, control:statistics, reaches 40.0% (39.0–41.0)." in text(results, "Transformation")
    transformation(results, "control:statistics", 0.695)
    compared(results, "transformation", "accuracy", *pair, 0.005, 0.6)
    said = text(results, "Transformation")
    first = "No clear difference between alpha and control:statistics (+0.5 points, −1.5 to +2.5; p = 0.60)."
    assert said.startswith(f"{first} A linear probe on alpha")
    transformation(results, "control:statistics", 0.80)
    compared(results, "transformation", "accuracy", *pair, -0.1, 0.001)
    assert text(results, "Transformation").startswith(
        "A control leads: control:statistics has 80.0% (79.0–81.0), clearly above alpha. A linear probe on alpha"
    )
    compared(results, "transformation", "accuracy", *pair, -0.1, 0.2)
    first = "No clear difference between alpha and control:statistics (−10.0 points, −12.0 to −8.0; p = 0.20)."
    assert text(results, "Transformation").startswith(
        f"A control leads: control:statistics has 80.0% (79.0–81.0). {first}"
    )


@pytest.mark.parametrize(
    ("title", "task", "metric", "key"),
    [
        ("Transformation", "transformation", "accuracy", "transformation"),
        ("Held out", "kind", "held_out", "kind"),
        ("In turn", "rotation", "accuracy", "kind_rotation"),
        ("Class", "class", "original", "class"),
    ],
)
def test_every_ranking_has_its_controls(title: str, task: str, metric: str, key: str) -> None:
    results = real_results("alpha", "control:statistics")
    results["backbones"]["control:statistics"][key]["linear"][metric]["value"] = 1.0
    compared(results, task, metric, "alpha", "control:statistics", -0.1, 0.001)
    assert text(results, title).startswith("A control leads: control:statistics has 100.0%")


@pytest.mark.parametrize("title", ["Transformation", "Held out", "In turn", "Class"])
def test_what_has_not_converged_is_named_and_not_ranked(title: str) -> None:
    task = {"Transformation": "transformation", "Held out": "kind", "In turn": "kind_rotation", "Class": "class"}[title]
    results = all_converged(real_results(*TWO, "gamma"))
    assert not has(results, "Not converged")
    results["backbones"]["alpha"][task]["linear"]["converged"] = False
    said = text(results, title)
    assert "not converged: alpha." in said
    assert said.count("alpha") == 1
    assert "Ranks" not in said  # of the two that are left
    for name in ("beta", "gamma"):
        results["backbones"][name][task]["linear"]["converged"] = False
    assert text(results, title) == "No ranking: the probes on alpha, beta and gamma have not converged."
    assert text(results, "Not converged").startswith("3 probes have not converged")
    assert unconverged(validate_results(results)) == [(name, task, "linear") for name in ("alpha", "beta", "gamma")]


def test_a_gap_that_may_be_none_and_a_score_at_chance_are_said() -> None:
    results = real_results("alpha")
    scores = results["backbones"]["alpha"]["kind"]["linear"]
    assert "clearly" not in text(results, "Held out")
    assert "above chance" not in text(results, "Held out")
    scores["held_out"] = estimate(0.11, 0.05, 0.2) | {"one_way": scores["held_out"]["one_way"]}
    scores["gap"] = estimate(0.01, -0.01, 0.03) | {"one_way": [0.001, 0.02]}
    said = text(results, "Held out")
    assert "11.0% (95% interval 5.0–20.0; 32 photographs and 13 held-out transformations; chance 10.0%)" in said
    assert "a gap of 1.0 points (−1.0 to +3.0), not clearly different from 0" in said
    assert "not clearly above chance" in said


def test_other_choices_of_what_is_held_out_are_said() -> None:
    results = real_results("alpha")
    drawn = {"sets": 20, "mean": 0.521, "sd": 0.065, "low": 0.41, "high": 0.66}
    results["backbones"]["alpha"]["kind_redrawn"] = {"linear": drawn}
    said = text(results, "Held out")
    assert "Over 20 " in said
    assert "alpha reaches 52.1 ± 6.5% (41.0–66.0)." in said


def test_a_floor_is_one_for_every_backbone() -> None:
    results = real_results(*THREE)
    for name in THREE:
        for task in ("kind", "kind_rotation"):
            rows = results["backbones"][name][task]["linear"]["by_transformation"]
            for t, row in rows.items():
                row["accuracy"] = estimate(0.06 if t == "inverted_lines" else 0.5)
    assert floors(validate_results(results), "linear") == ["inverted_lines"]
    assert text(results, "Held out").endswith(": inverted_lines.")
    rows = results["backbones"]["beta"]["kind_rotation"]["linear"]["by_transformation"]
    rows["inverted_lines"]["accuracy"] = estimate(0.2)
    assert floors(validate_results(results), "linear") == []


def test_multitask_says_only_what_its_intervals_say() -> None:
    results = all_converged(real_results(*TWO))
    for name, interval in (("alpha", [-0.03, -0.01]), ("beta", [-0.02, 0.01])):
        difference = results["backbones"][name]["multitask"]["difference"]
        difference["transformation"] = estimate(sum(interval) / 2, *interval) | {"ci90": interval}
        difference["class"] = estimate(0.0, -0.012, 0.012) | {"ci90": [-0.009, 0.009]}
    said = text(results, "Multi-task")
    assert "transformation is clearly worse on alpha (−3.0 to −1.0 points)" in said
    assert "transformation shows no clear difference on 1 other backbone;" in said
    assert "class is equivalent within 1 point on 2 backbones." in said
    results["backbones"]["alpha"]["multitask"]["converged"] = False
    said = text(results, "Multi-task")
    assert "clearly worse" not in said
    assert said.endswith("not converged: alpha.")


def test_missing_parts_are_not_spoken_of() -> None:
    results = with_heads(of_probes(shortened(without_classes(real_results("alpha")), 2)), "linear")
    assert {finding.title for finding in findings(validate_results(results))} == {"Transformation"}
    for backbone in results["backbones"].values():
        backbone["transformation"] = backbone["kind"] = None
    assert findings(validate_results(results)) == []
    assert portrait(validate_results(results), "alpha") == []


def test_many_backbones_do_not_make_long_sentences() -> None:
    results = real_results(*(f"backbone {i}" for i in range(12)))
    results["comparisons"] = []
    assert max(len(finding.text) for finding in findings(validate_results(results))) < 1500
    assert "more" in text(results, "Transformation")


def test_a_portrait_holds_the_backbones_own_numbers() -> None:
    results = real_results(*TWO)
    transformation(results, "alpha", 0.8125)
    lines = portrait(validate_results(results), "alpha")
    assert lines[0] == "Transformation: 81.2% (95% interval 80.2–82.2; 32 photographs and 33 transformations)."
    assert len(lines) == 4
    results["backbones"]["alpha"]["transformation"]["linear"]["converged"] = False
    assert len(portrait(validate_results(results), "alpha")) == 3


def only_held_out(results: dict[str, Any], names: list[str]) -> None:
    """Leave one transformation held out, and no interval over transformations."""
    for row in results["transformations"]:
        row["role"] = "held_out" if row["name"] in names else "train"
    for backbone in results["backbones"].values():
        scores = backbone["kind"]["linear"]
        for key in ("held_out", "gap"):
            scores[key] |= {"low": None, "high": None}
        backbone["kind_rotation"] = None
    for row in results["comparisons"]:
        if row["metric"] == "held_out":
            row |= {"p": None, "p_holm": None}
            row["difference"] |= {"low": None, "high": None, "ci90": None}


def test_one_held_out_transformation_is_no_headline() -> None:
    results = real_results("alpha", "control:pixels")
    only_held_out(results, ["style_wave"])
    results["backbones"]["alpha"]["kind"]["linear"]["held_out"]["value"] = 0.363
    results["backbones"]["control:pixels"]["kind"]["linear"]["held_out"]["value"] = 0.0
    few = "32 photographs and 1 held-out transformation"
    short, said = answer(validate_results(results), "kind"), text(results, "Held out")
    assert short is not None
    assert (short.number, short.interval) == ("inconclusive", f"from {few}; chance 10.0%")
    assert not short.plots.panels
    assert f"inconclusive from {few}" in said
    for sentences in (short.text, said):
        assert f"The difference between alpha and control:pixels is inconclusive from {few}." in sentences
        assert "36.3%" not in sentences
        assert "clear" not in sentences


def test_an_interval_wider_than_half_of_the_scale_is_no_headline() -> None:
    results = real_results("alpha")
    scores = results["backbones"]["alpha"]["kind_rotation"]["linear"]
    for high, number in ((0.8, "inconclusive"), (0.7, "50.0%")):
        scores["accuracy"] |= estimate(0.5, 0.2, high)
        short = answer(validate_results(results), "kind")
        assert short is not None
        assert short.number == number
        assert "32 photographs and 32 held-out transformations" in short.interval
        assert f"95% interval 20.0–{100 * high:.1f}" in short.interval
        assert (f"{number} (" in text(results, "In turn")) == (number == "50.0%")


def test_a_control_that_is_lower_is_called_so_by_the_paired_difference() -> None:
    results = real_results("alpha", "control:pixels")
    transformation(results, "alpha", 0.6)
    transformation(results, "control:pixels", 0.0, half=0.0)
    compared(results, "transformation", "accuracy", "alpha", "control:pixels", 0.6, 0.001)
    expected = "Clearly below: the strongest control, control:pixels, reaches 0.0% (0.0–0.0)."
    short = answer(validate_results(results), "transformation")
    assert short is not None
    assert expected in short.text
    assert expected in text(results, "Transformation")
    results["comparisons"][-1]["p_holm"] = 0.2
    results["comparisons"][-1]["difference"] |= {"low": -0.1, "high": 1.0}
    for sentences in (
        text(results, "Transformation"),
        getattr(answer(validate_results(results), "transformation"), "text", ""),
    ):
        assert "alpha and control:pixels (+60.0 points, −10.0 to +100.0; p = 0.20) is inconclusive from 32" in sentences
        assert "clear" not in sentences.lower()


def test_unseen_transformations_are_compared_on_the_same_split_or_rotation() -> None:
    results = real_results("alpha", "control:pixels")
    assert unseen(validate_results(results), "linear") == ("kind_rotation", "accuracy")
    assert has(results, "In turn")
    results["backbones"]["control:pixels"]["kind_rotation"] = None
    given = validate_results(results)
    short, split = answer(given, "kind"), given.probe("alpha", "kind", "linear")
    assert short is not None
    assert split is not None
    assert short.number == f"{show(split.held_out)}%"
    assert "13 held-out transformations" in short.interval
    assert "control:pixels" in short.text
    assert not has(results, "In turn")
    adapted = {**results["backbones"]["control:pixels"], "control": False, "adapter": {"backbone": "alpha"}}
    results["backbones"]["control:pixels"] = adapted  # trained on all transformations, so that none is held out in turn
    assert unseen(validate_results(results), "linear") == ("kind_rotation", "accuracy")


def test_class_scores_are_over_labelled_photographs() -> None:
    results = real_results()
    results["labelled_test"] = 120
    said = text(results, "Class")
    assert "120 photographs" in said
    assert "32 photographs" not in said
