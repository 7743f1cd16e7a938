from typing import Any

import pytest
from tests.engine.report.real import (
    all_converged,
    estimate,
    real_results,
)

from substyle.engine.probes.outcomes import GENERAL
from substyle.engine.report.answers import answer
from substyle.engine.report.findings import findings, unconverged
from substyle.engine.stages.results import validate_results

TWO = ("alpha", "beta")


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
