"""What the report says of results: findings, labels, tables and plots."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from tests.engine.report.real import (
    all_converged,
    estimate,
    of_probes,
    real_results,
)

from substyle.engine.probes.outcomes import GENERAL
from substyle.engine.report import curves
from substyle.engine.report.answers import answer
from substyle.engine.report.curves import severity_plots
from substyle.engine.report.data import Column, Table, labelled, labels_of
from substyle.engine.report.findings import findings, unconverged
from substyle.engine.report.page import flat, write_tables
from substyle.engine.report.tables import headline_table
from substyle.engine.stages.results import validate_results
from substyle.engine.study.file import study_of
from substyle.engine.study.report import write_report
from substyle.errors import ConfigError

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


LITE, VIT = "efficientnet_lite0", "dinov2_vit_small"


def test_labels_stand_everywhere_and_names_nowhere(tmp_path: Path) -> None:
    results = of_probes(real_results(LITE, VIT, f"control:random:{LITE}"))
    results["backbones"][LITE]["label"] = "EfficientNet"
    shown = labelled(validate_results(results))
    renamed = {LITE: "EfficientNet"}
    assert list(shown.backbones) == [renamed.get(name, name) for name in results["backbones"]]
    assert LITE not in {name for row in shown.comparisons or [] for name in (row.a, row.b)}
    assert f"control:random:{LITE}" in shown.backbones  # a longer name is another backbone
    files = write_report(validate_results(results), tmp_path)
    page = files.html.read_text()
    assert "EfficientNet" in page
    assert page.count(LITE) == page.count(f"random:{LITE}")
    results["backbones"][LITE] |= {"base": {"a": 1}, "copy": LITE}  # of other versions
    extra = labelled(validate_results(results)).backbones["EfficientNet"]
    assert extra.model_extra == {"base": {"a": 1}, "copy": "EfficientNet"}
    unlabelled = validate_results(real_results(LITE, VIT))
    assert labelled(unlabelled) is unlabelled


def test_two_backbones_cannot_have_one_label() -> None:
    results = real_results(LITE, VIT)
    for name in (LITE, VIT):
        results["backbones"][name]["label"] = "A"
    with pytest.raises(ConfigError) as error:
        labels_of(validate_results(results))
    assert error.value.field == "label"
    row = {"name": "control:pixels", "label": "A"}
    with pytest.raises(ConfigError):
        study_of({"name": "s", "backbones": [row, {"name": "control:statistics", "label": "A"}]})


TABLE = Table(
    "toy",
    "A 50% table",
    (
        Column("name", "Name", "text"),
        Column("x", "X", interval=True),
        Column("d", "D", "points"),
        Column("n", "N", "count"),
    ),
    (
        ("a_b & <c>", (0.5, 0.4, 0.6), -0.012, 1234),
        ("=1+1", None, None, None),
        ("no interval", (0.25, None, None), 0.0, 0),
    ),
)


def test_csv_holds_all_numbers(tmp_path: Path) -> None:
    write_tables([TABLE], tmp_path)
    columns, rows = flat(TABLE)
    names = [name for name, _ in columns]
    assert names == ["name", "x", "x_low", "x_high", "d", "n"]
    with (tmp_path / "toy.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.reader(file))
    assert read[0] == names
    assert [[cell or None for cell in row] for row in read[1:]] == [
        [None if c is None else str(c) for c in row] for row in rows
    ]


def test_headline_marks_probes_that_have_not_converged() -> None:
    results = all_converged(real_results("alpha", "beta"))
    assert "†" not in headline_table(validate_results(results))
    results["backbones"]["beta"]["kind"]["linear"]["converged"] = False
    *lines, note = headline_table(validate_results(results)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.count("†") for line in lines if line.startswith(("alpha", "beta"))] == [0, 3]  # seen, held-out, gap
    assert note.startswith("†")


def test_headline_states_a_configured_gate() -> None:
    results = all_converged(real_results("alpha", "beta"))
    results["backbones"]["beta"]["gate"] = {"cosine_min": 0.995, "threshold": 0.99, "configured": True}
    results["backbones"]["alpha"]["gate"] = {"cosine_min": 0.9995, "threshold": 0.999, "configured": False}
    *_, note = headline_table(validate_results(results)).splitlines()
    assert note == "The minimum cosine with float32 is set to 0.99 for beta."


def layered() -> dict[str, Any]:
    """Results of a network's own output, of four of its layers, and of two layers of another."""
    names = {f"m@layer={i},pool=avg": i for i in (3, 0, 2, 1)} | {f"other@pool=max,layer={i}": i for i in (0, 1)}
    results = real_results("m", *names)
    for name, layer in names.items():
        backbone = results["backbones"][name]
        backbone["spec"]["pooling"] = f"avg, block {layer} of 0 to 5"
        backbone["transformation"]["linear"]["accuracy"] = estimate(*(each + 0.1 * layer for each in (0.5, 0.4, 0.6)))
    return results


def test_depth_plots_have_the_layers_in_order() -> None:
    results = layered()
    (plot,) = curves.depth_plots(validate_results(results))  # two layers are no curve
    assert (plot.name, plot.last) == ("m@pool=avg", 5)
    assert [curve.label for curve in plot.curves] == ["transformation", "held out", "class", "class, transformed"]
    for curve, (task, key) in zip(
        plot.curves,
        [("transformation", "accuracy"), ("kind", "held_out"), ("class", "original"), ("class", "transformed")],
        strict=True,
    ):
        assert [layer for layer, *_ in curve.points] == [0, 1, 2, 3]
        expected = [results["backbones"][f"m@layer={i},pool=avg"][task]["linear"][key]["value"] for i in range(4)]
        assert [value for _, value, _, _ in curve.points] == expected
        assert all(low is not None and low <= value <= high for _, value, low, high in curve.points)
    assert f"transformation at layer 3 ({100 * plot.curves[0].points[3][1]:.1f} %" in plot.summary


@pytest.fixture
def swept() -> dict[str, Any]:
    """Results in which two backbones have curves of one transformation."""
    swept: dict[str, Any] = real_results("alpha", "beta")
    names = [name for name, each in swept["backbones"].items() if (each.get("transformation") or {}).get("linear")][:2]
    assert len(names) == 2
    for name, half in zip(names, (1.5, 4.0), strict=True):
        curve = {
            "severities": [1, 2, 5],
            "accuracy": [estimate(0.2, 0.1, 0.3), estimate(0.6, 0.5, 0.7), None],
            "halfway": estimate(half, half - 0.2, half + 0.2),
        }
        swept["backbones"][name]["control"] = False
        swept["backbones"][name]["transformation"]["linear"]["by_severity"] = {"fog": curve}
        swept["backbones"][name]["sensitivity"] = {"fog@2": estimate(0.3)}
    return swept


def test_the_plot_says_who_names_it_later(swept: dict[str, Any]) -> None:
    (plot,) = severity_plots(validate_results(swept))
    assert (plot.name, plot.last) == ("fog", 2)
    assert len({curve.colour for curve in plot.curves}) == 2
    assert "clearly later" in plot.summary
    assert "(4.0)" in plot.summary
    for each in swept["backbones"].values():
        for curve in ((each.get("transformation") or {}).get("linear") or {}).get("by_severity", {}).values():
            curve["halfway"] |= {"low": 0.5, "high": 5.0}
    assert "no other backbone is clearly later" in severity_plots(validate_results(swept))[0].summary


@pytest.mark.usefixtures("figures")
@pytest.mark.slow
def test_the_page_has_a_section(swept: dict[str, Any], tmp_path: Path) -> None:
    files = write_report(validate_results(swept), tmp_path)
    assert 'id="severity"' in files.html.read_text()
    assert "<title>alpha: severity 1 20.0 (10.0–30.0), severity 2 60.0 (50.0–70.0)</title>" in files.html.read_text()
    hollow = "fill: var(--paper)"
    assert hollow not in files.html.read_text().partition('id="severity"')[2].partition("</section>")[0]
    swept["backbones"]["alpha"]["transformation"]["linear"]["converged"] = False
    assert (
        write_report(validate_results(swept), tmp_path).html.read_text().partition('id="severity"')[2].count(hollow)
        >= 2
    )
    assert {"severity.pdf", "severity.png"} <= {path.name for path in files.figures}


def test_many_backbones_do_not_make_long_sentences() -> None:
    results = real_results(*(f"backbone {i}" for i in range(12)))
    results["comparisons"] = []
    assert max(len(finding.text) for finding in findings(validate_results(results))) < 1500
    assert "more" in text(results, "Transformation")


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
