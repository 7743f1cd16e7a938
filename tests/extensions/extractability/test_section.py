"""Extractability and complexity in tables, on the page and in figures."""

from __future__ import annotations

import csv
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tests.engine.report.real import real_results

from substyle.engine.extensions.extractability import complexity_section, section
from substyle.engine.extensions.extractability.complexity_section import Size, complexity_summary, size_plots
from substyle.engine.results.model import entry_of
from substyle.engine.stages.results import validate_results
from substyle.engine.study.report import write_report
from substyle.errors import SubstyleError


def sized(style: float, substance: float, parameters: int, **changes: object) -> dict[str, Any]:
    row: dict[str, Any] = {"depth": 1, "width": 64, "selected": [], "front": False}
    for task, value in (("transformation", style), ("class", substance), ("transformed", substance / 2)):
        row |= {task: entry_of(value, (value - 0.02, value + 0.02))}
        row |= {f"{task}_difference": entry_of(value - 0.8, (value - 0.81, value - 0.79))}
    for task in ("transformation", "class"):
        row |= {f"{task}_parameters": parameters, f"{task}_validation": 0.8, f"{task}_converged": True}
    return row | changes


def read(bits: float, **changes: object) -> dict[str, Any]:
    own: dict[str, Any] = {"memorised": {"value": 0.25}, "converged": True, "photographs": 300}
    numbers = {"task": 0.9, "control": 0.3, "selectivity": 0.6}
    own |= {key: entry_of(value, (value - 0.05, value + 0.05)) for key, value in numbers.items()}
    code = {"bits": entry_of(bits, (bits - 0.1, bits + 0.1)), "uniform": 4.954}
    curve: dict[str, Any] = {"needed": entry_of(93.4, (71.8, 119.2)), "converged": True}
    points = {size: {"accuracy": entry_of(0.4, (0.3, 0.5)), "C": 0.1} for size in ("1", "2", "390")}
    shuffled = {"accuracy": 0.04, "expected": 0.03, "range95": [0.02, 0.05], "at_chance": True, "converged": True}
    code |= {"compression": entry_of(5 / bits, (5 / bits - 1, 5 / bits + 1)), "converged": True}
    entry: dict[str, Any] = {"selectivity": own, "codelength": code, "curve": curve | {"points": points}}
    return entry | {"shuffled": shuffled} | changes


@pytest.fixture
def results() -> dict[str, Any]:
    made: dict[str, Any] = real_results("alpha", "beta", "control:pixels")
    for bits, backbone in zip((0.8, 0.5, 2.5), made["backbones"].values(), strict=True):
        backbone["extractability"] = {
            "transformation": {"linear": read(bits), "mlp": {"selectivity": read(1.0)["selectivity"]}},
            "class": {"linear": read(1.3 - bits / 10)},
        }
        backbone["complexity"] = {
            "linear": sized(0.8, 0.8, 1000, depth=0, width=None, front=True, selected=["class"]),
            "1x64": sized(0.85, 0.7, 64_000, front=True, selected=["transformation", "both"]),
            "2x64": sized(0.84, 0.6, 70_000),
            "4x64": sized(0.2, 0.3, 80_000, transformation_converged=False),
        }
    validate_results(made)
    return made


def test_tables_hold_the_numbers_and_chance(results: dict[str, Any]) -> None:
    table = section.extractability(validate_results(results))
    columns = [column.name for column in table.columns]
    rows = [dict(zip(columns, row, strict=True)) for row in table.rows]
    assert [(r["backbone"], r["task"], r["head"]) for r in rows[:4]] == [
        *((name, "transformation", head) for name in ("alpha", "beta") for head in ("linear", "mlp")),
    ]  # fmt: skip
    accuracy = results["backbones"]["alpha"]["transformation"]["linear"]["accuracy"]
    assert rows[0]["test"] == (accuracy["value"], accuracy["low"], accuracy["high"])
    assert rows[0]["needed"] == (93, 72, 119)
    assert rows[0]["by_chance"] == (0.03, 0.02, 0.05)
    assert (rows[0]["bits"][0], rows[1]["bits"], rows[0]["converged"]) == (0.8, None, "yes")
    chance = [r for r in rows if r["backbone"] == "chance"]
    assert [(r["task"], r["test"][0], r["bits"][0], r["compression"][0]) for r in chance] == [
        ("transformation", pytest.approx(1 / 33, abs=1e-5), 4.954, 1.0),
        ("class", results["chance"]["class"], 4.954, 1.0),
    ]  # fmt: skip
    assert len(section.learning_curves(validate_results(results)).rows) == 3 * 2 * 3
    assert [row[1] for row in complexity_section.complexity(validate_results(results)).rows[:4]] == [
        "linear",
        "1×64",
        "2×64",
        "4×64",
    ]
    assert [row[-3:] for row in complexity_section.complexity(validate_results(results)).rows[:4]] == [
        ("yes", "class", "yes"), ("yes", "transformation, both", "yes"), ("no", "", "yes"), ("no", "", "no"),
    ]  # fmt: skip


def test_the_sentence_on_extractability_follows_the_numbers(results: dict[str, Any]) -> None:
    text = section.extractability_summary(validate_results(results))
    assert "Transformation takes the fewest bits per label of all backbones in beta: 0.500 (0.400–0.600" in text
    assert "of all controls in control:pixels: 2.500" in text
    assert "at chance in 6 of 6 cases." in text
    changed = deepcopy(results)
    changed["backbones"]["beta"]["extractability"]["transformation"]["linear"]["codelength"]["converged"] = False
    changed["backbones"]["alpha"]["extractability"]["transformation"]["linear"]["shuffled"]["at_chance"] = False
    text = section.extractability_summary(validate_results(changed))
    assert "Transformation takes the fewest bits per label of all backbones in alpha: 0.800" in text
    assert "at chance in 5 of 6 cases, not in alpha (transformation); one in 20" in text


def test_the_sentence_on_complexity_follows_the_numbers(results: dict[str, Any]) -> None:
    rows = validate_results(results).backbones["alpha"].entry("complexity")
    text = complexity_summary({name: row for name, row in rows.items() if row})
    assert "Transformation: validation selects 1×64, 64,000 parameters, 85.0% on test photographs, +5.0 points" in text
    assert "(+4.0 to +6.0)" in text
    assert "Class: validation selects linear, 1,000 parameters, 80.0% on test photographs." in text
    assert "On the Pareto front of test accuracies: linear, 1×64." in text
    assert "1 of 4 probes have not converged" in text
    unconverged = Size.model_validate(sized(0.1, 0.1, 10, transformation_converged=False, class_converged=False))
    late = dict.fromkeys(("1x8", "1x16"), unconverged)
    assert "Transformation: no probe has converged." in complexity_summary(late)
    assert "front" not in complexity_summary(late).split("2 of 2")[0]


def test_the_front_is_drawn_from_left_to_right(results: dict[str, Any]) -> None:
    plot = size_plots(validate_results(results))[0]
    assert [point.label for point in plot.front] == ["1×64", "linear"]
    assert [point.kind for point in plot.points] == ["open", "full", "open", "late"]


@pytest.mark.usefixtures("figures")
def test_everything_is_on_the_page_in_files_and_figures(results: dict[str, Any], tmp_path: Path) -> None:
    files = write_report(validate_results(results), tmp_path)
    html = files.html.read_text()
    assert '<section id="extractability">' in html
    assert html.partition('id="complexity"')[2].partition("</section>")[0].count(">class accuracy, %</text>") == 3
    assert {plot.name: plot.summary for plot in size_plots(validate_results(results))}["beta"] in html
    assert {path.name for path in files.figures} >= {"complexity.pdf", "complexity.png"}
    with (tmp_path / "tables" / "extractability.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["needed"], rows[0]["needed_low"], rows[0]["needed_high"]) == ("93", "72", "119")
    assert {f"{name}.csv" for name in ("complexity", "learning_curves")} <= {path.name for path in files.tables}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("complexity", "linear", "front"), "yes"),
        (("complexity", "linear", "selected"), "transformation"),
        (("extractability", "transformation", "linear", "shuffled", "at_chance"), 1),
        (("extractability", "transformation", "linear", "codelength", "bits"), 0.5),
        (("extractability", "transformation", "linear", "codelength", "bits", "low"), "0.5"),
    ],
)
def test_bad_values_are_refused_by_their_path(results: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    entry = results["backbones"]["alpha"]
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    with pytest.raises(SubstyleError, match=r"\.".join(path)):
        validate_results(results)
