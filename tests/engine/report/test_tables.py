import csv
import re
from pathlib import Path

import pytest
from tests.engine.report.real import (
    BACKBONE,
    NAMES,
    all_converged,
    estimate,
    of_probes,
    real_results,
    shortened,
    with_heads,
    without_classes,
)

from substyle.engine.report import tables
from substyle.engine.report.data import Column, Kind, Table, show
from substyle.engine.report.page import flat, latex_escape, write_tables
from substyle.engine.report.tables import headline_table
from substyle.engine.stages.results import validate_results
from substyle.engine.study.report import all_tables, write_report

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


TABLES = """
    claims overview per_transformation confusion_transformation confusion_kind generalisation rotation redrawn
    equal_width
    class multitask comparisons training few_shot parameters shortcuts shortcuts_by_transformation knn neighbours
    geometry similarity shift attacks attack_detection attack_tpr extractability learning_curves complexity generators
    by_generator generator_contrasts movement movement_by_transformation
"""


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0.93149, "share", "93.1"),
        (1.0, "share", "100.0"),
        (0, "share", "0.0"),
        (None, "share", "–"),
        (-0.0213, "points", "−2.1"),
        (0.02, "points", "+2.0"),
        (12345, "count", "12,345"),
        (-0.5, "number", "−0.500"),
        ("x", "text", "x"),
        (-0.0004, "share", "0.0"),
        (-0.0004, "points", "+0.0"),
    ],
)
def test_show(value: object, kind: Kind, text: str) -> None:
    assert show(value, kind) == text


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


def test_latex_is_escaped_and_complete(tmp_path: Path) -> None:
    write_tables([TABLE], tmp_path)
    text = (tmp_path / "toy.tex").read_text()
    assert r"a\_b \& <c> & 50.0 [40.0, 60.0] & $-$1.2 & 1,234 \\" in text
    assert r"no interval & 25.0 & +0.0 & 0 \\" in text
    assert text.count(r"\\") == 4
    assert r"\begin{tabular}{lrrr}" in text


def test_latex_specials_are_harmless() -> None:
    assert latex_escape("\\input{x}%$#&_^~\n") == (
        r"\textbackslash{}input\{x\}\%\$\#\&\_\textasciicircum{}\textasciitilde{} "
    )


def test_every_table_of_full_results_is_written_in_every_format(tmp_path: Path) -> None:
    made = all_tables(validate_results(real_results()))
    names = {table.name for table in made}
    assert names == set(TABLES.split())
    for table in made:
        assert all(len(row) == len(table.columns) for row in table.rows)
    written = write_tables(made, tmp_path)
    assert len(written) == len(set(written)) == 2 * len(names) - 2  # matrices have no .tex
    assert all(path.stat().st_size > 0 for path in written)


def test_numbers_come_from_their_places() -> None:
    results = real_results()
    backbone = results["backbones"][BACKBONE]

    def cell(own: dict[str, float]) -> tuple[float, float, float]:
        return own["value"], own["low"], own["high"]

    def row_of(table: Table, *start: object) -> dict[str, object]:
        found = [row for row in table.rows if row[: len(start)] == start]
        assert len(found) == 1
        return dict(zip((column.name for column in table.columns), found[0], strict=True))

    overview = row_of(tables.overview(validate_results(results)), BACKBONE, "mlp")
    assert overview["transformation"] == cell(backbone["transformation"]["mlp"]["accuracy"])
    assert overview["gap"] == cell(backbone["kind"]["mlp"]["gap"])
    assert backbone["kind"]["mlp"]["gap"]["one_way"] != list(overview["gap"][1:])
    assert overview["transformed"][0] == backbone["class"]["mlp"]["transformed"]["value"]
    style = row_of(tables.by_transformation(validate_results(results), "transformation"), BACKBONE, "swirl")
    assert style["transformation_linear"] == backbone["transformation"]["linear"]["by_transformation"]["swirl"]
    new = row_of(tables.by_transformation(validate_results(results), "kind"), BACKBONE, "swirl")
    swirl = backbone["kind"]["linear"]["by_transformation"]["swirl"]
    assert new["kind_linear"] == cell(swirl["accuracy"])
    assert new["role"] == "held_out"
    moved = row_of(tables.geometry(validate_results(results)), BACKBONE, "swirl")
    assert moved["sensitivity"] == cell(backbone["sensitivity"]["swirl"])
    assert moved["steerability"] == backbone["steerability"]["swirl"]
    near = row_of(tables.knn(validate_results(results)), BACKBONE, 10)
    assert near["transformation"][0] == backbone["knn"]["transformation"]["10"]["value"]
    assert near["class"][0] == backbone["knn"]["class"]["10"]["value"]


def test_confusion_counts_add_up() -> None:
    results = with_heads(real_results("alpha"), "linear")
    rows = tables.confusions(validate_results(results), "transformation").rows
    counts = results["backbones"]["alpha"]["transformation"]["linear"]["confusion"]["counts"]
    assert sum(row[-1] for row in rows) == sum(map(sum, counts))
    assert ("alpha", "linear", "jpeg", "jpeg", counts[14][14]) in rows


def test_tables_without_numbers_have_no_rows() -> None:
    results = of_probes(without_classes(real_results()))
    results["comparisons"] = results["claims"] = None
    names = {table.name for table in all_tables(validate_results(results))}
    expected = {"overview", "per_transformation", "generalisation", "rotation", "redrawn", "equal_width", "training"}
    assert names == expected | {"confusion_transformation", "confusion_kind"}


def test_rotation_has_its_table() -> None:
    results = real_results("alpha")
    scores = {"by_transformation": {"jpeg": {"accuracy": estimate(0.4, 0.3, 0.5)}}}
    results["backbones"]["alpha"]["kind_rotation"] = {"linear": scores}
    assert tables.by_transformation(validate_results(results), "kind_rotation").rows == (
        ("alpha", "jpeg", "quality", "train", (0.4, 0.3, 0.5), None),
    )


def test_headline_has_a_line_for_each_backbone_and_chance() -> None:
    results = real_results()
    lines = headline_table(validate_results(results)).splitlines()
    assert len(lines) == 2 + len(NAMES) + 1
    assert lines[0].split()[:2] == ["backbone", "dim"]
    assert {"seen", "held out", "class, original", "class, transformed"} <= set(re.split("  +", lines[0]))
    assert lines[2].startswith(NAMES[0])
    assert show(results["backbones"][NAMES[0]]["transformation"]["mlp"]["accuracy"]["value"]) in lines[2]
    assert lines[-1].split() == ["chance", "3.0", "3.0", "10.0", "10.0", "6.2", "6.2", "3.0"]
    assert len({len(line) for line in lines}) == 1


def test_headline_marks_probes_that_have_not_converged() -> None:
    results = all_converged(real_results("alpha", "beta"))
    assert "†" not in headline_table(validate_results(results))
    results["backbones"]["beta"]["kind"]["linear"]["converged"] = False
    *lines, note = headline_table(validate_results(results)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.count("†") for line in lines if line.startswith(("alpha", "beta"))] == [0, 3]  # seen, held-out, gap
    assert note.startswith("†")


def test_headline_of_nearly_nothing() -> None:
    results = with_heads(of_probes(shortened(without_classes(real_results("alpha")), 2)), "mlp")
    text = headline_table(validate_results(results))
    assert "transformation mlp" in text
    assert "–" in text
    del results["chance"]
    results["backbones"]["alpha"] = {"dim": 8, "control": False}
    assert "alpha" in headline_table(validate_results(results))


def test_probes_that_have_not_converged_are_marked(tmp_path: Path) -> None:
    results = all_converged(real_results("alpha", "beta"))
    before = write_report(validate_results(results), tmp_path / "before")
    assert "†" not in before.html.read_text()
    for task in ("transformation", "class"):
        results["backbones"]["alpha"][task]["linear"]["converged"] = False
    after = write_report(validate_results(results), tmp_path / "after")
    page = after.html.read_text()
    accuracy, original = (
        show(results["backbones"]["alpha"][task]["linear"][key]["value"])
        for task, key in (("transformation", "accuracy"), ("class", "original"))
    )
    assert page.count(f"<td>{accuracy} †<small>") == 3  # overview, beside nearest neighbours, extractability
    assert (
        page.count(f"<td>{original} †<small>") == 5
    )  # also few photographs of a class, and beside shifted photographs
    assert page.count("alpha <wbr>†</th>") == 2  # columns of transformation and of class by transformation
    assert "beta †" not in page
    latex = (tmp_path / "after" / "tables" / "overview.tex").read_text()
    assert latex.count(r"$\dagger$") == 3  # transformation, class of unchanged and of transformed photographs
    before, marked = (tmp_path / name / "tables" / "overview.csv" for name in ("before", "after"))
    assert before.read_text() == marked.read_text()
