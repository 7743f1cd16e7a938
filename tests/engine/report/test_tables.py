import csv
import re
from pathlib import Path
from types import ModuleType

import pytest

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


def test_every_table_of_full_results_is_written_in_every_format(fake: ModuleType, tmp_path: Path) -> None:
    made = all_tables(validate_results(fake.fake_results()))
    names = {table.name for table in made}
    assert names == {
        "overview",
        "per_transformation",
        "generalisation",
        "rotation",
        "redrawn",
        "equal_width",
        "semantic",
        "multitask",
        "knn",
        "neighbours",
        "geometry",
        "shift",
        "comparisons",
        "claims",
        "training",
        "confusion_fine",
        "confusion_coarse",
    }
    for table in made:
        assert all(len(row) == len(table.columns) for row in table.rows)
    written = write_tables(made, tmp_path)
    assert len(written) == len(set(written)) == 17 + 15
    assert all(path.stat().st_size > 0 for path in written)


def test_numbers_come_from_their_places(fake: ModuleType) -> None:
    results = fake.fake_results()
    backbone = results["backbones"]["dinov2_vit_small"]

    def row_of(table: Table, *start: object) -> dict[str, object]:
        found = [row for row in table.rows if row[: len(start)] == start]
        assert len(found) == 1
        return dict(zip((column.name for column in table.columns), found[0], strict=True))

    overview = row_of(tables.overview(validate_results(results)), "dinov2_vit_small", "mlp")
    assert overview["style"] == (backbone["fine"]["mlp"]["accuracy"], *backbone["fine"]["mlp"]["ci95"])
    assert overview["gap"] == (backbone["coarse"]["mlp"]["gap"], *backbone["coarse"]["mlp"]["gap_two_way_ci95"])
    assert overview["obfuscated"][0] == backbone["semantic"]["mlp"]["obfuscated"]
    style = row_of(tables.by_transformation(validate_results(results), "fine"), "dinov2_vit_small", "swirl")
    assert style["style_linear"] == backbone["fine"]["linear"]["by_transformation"]["swirl"]
    new = row_of(tables.by_transformation(validate_results(results), "coarse"), "dinov2_vit_small", "swirl")
    swirl = backbone["coarse"]["linear"]["by_transformation"]["swirl"]
    assert new["coarse_linear"] == (swirl["accuracy"], *swirl["ci95"])
    assert new["role"] == "held_out"
    moved = row_of(tables.geometry(validate_results(results)), "dinov2_vit_small", "swirl")
    assert moved["sensitivity"] == (backbone["sensitivity"]["swirl"], *backbone["sensitivity_ci95"]["swirl"])
    assert moved["steerability"] == backbone["steerability"]["swirl"]
    near = row_of(tables.knn(validate_results(results)), "dinov2_vit_small", 10)
    assert near["style"][0] == backbone["knn"]["transformation"]["10"]
    assert near["class"][0] == backbone["knn"]["class"]["10"]


def test_confusion_counts_add_up(fake: ModuleType) -> None:
    results = fake.fake_results({"alpha": (0.8, 0.8)}, heads=("linear",))
    rows = tables.confusions(validate_results(results), "fine").rows
    counts = results["backbones"]["alpha"]["fine"]["linear"]["confusion"]["counts"]
    assert sum(row[-1] for row in rows) == sum(map(sum, counts))
    assert ("alpha", "linear", "jpeg", "jpeg", counts[14][14]) in rows


def test_tables_without_numbers_have_no_rows(fake: ModuleType) -> None:
    results = fake.fake_results(classes=(), multitask=False, shift=False, analysis=False)
    results["comparisons"] = results["claims"] = None
    names = {table.name for table in all_tables(validate_results(results))}
    expected = {"overview", "per_transformation", "generalisation", "rotation", "redrawn", "equal_width", "training"}
    assert names == expected | {"confusion_fine", "confusion_coarse"}


def test_rotation_has_its_table(fake: ModuleType) -> None:
    results = fake.fake_results({"alpha": (0.8, 0.8)})
    scores = {"by_transformation": {"jpeg": {"accuracy": 0.4, "ci95": [0.3, 0.5]}}}
    results["backbones"]["alpha"]["coarse_rotation"] = {"linear": scores}
    assert tables.by_transformation(validate_results(results), "coarse_rotation").rows == (
        ("alpha", "jpeg", "quality", "train", (0.4, 0.3, 0.5), None),
    )


def test_headline_has_a_line_for_each_backbone_and_chance(fake: ModuleType) -> None:
    results = fake.fake_results()
    lines = headline_table(validate_results(results)).splitlines()
    assert len(lines) == 2 + 6 + 1
    assert lines[0].split()[:2] == ["backbone", "dim"]
    assert {"seen", "held out", "class, original", "class, transformed"} <= set(re.split("  +", lines[0]))
    assert lines[2].startswith("vit_base_patch16_clip")
    assert show(results["backbones"]["vit_base_patch16_clip"]["fine"]["mlp"]["accuracy"]) in lines[2]
    assert lines[-1].split() == ["chance", "3.2", "3.2", "10.0", "10.0", "14.3", "14.3", "3.2"]
    assert len({len(line) for line in lines}) == 1


def test_headline_marks_probes_that_have_not_converged(fake: ModuleType) -> None:
    results = fake.fake_results({"alpha": (0.9, 0.9), "beta": (0.8, 0.8)})
    assert "†" not in headline_table(validate_results(results))
    results["backbones"]["beta"]["coarse"]["linear"]["converged"] = False
    *lines, note = headline_table(validate_results(results)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.count("†") for line in lines if line.startswith(("alpha", "beta"))] == [0, 3]  # seen, held-out, gap
    assert note.startswith("†")


def test_headline_of_nearly_nothing(fake: ModuleType) -> None:
    results = fake.fake_results({"alpha": (0.5, 0.5)}, suite=fake.SUITE[:2], classes=(), analysis=False, heads=("mlp",))
    text = headline_table(validate_results(results))
    assert "style mlp" in text
    assert "–" in text
    del results["chance"]
    results["backbones"]["alpha"] = {"dim": 8, "control": False}
    assert "alpha" in headline_table(validate_results(results))


def test_probes_that_have_not_converged_are_marked(fake: ModuleType, tmp_path: Path) -> None:
    results = fake.fake_results({"alpha": (0.9, 0.9), "beta": (0.8, 0.8)})
    before = write_report(validate_results(results), tmp_path / "before")
    assert "†" not in before.html.read_text()
    for task in ("fine", "semantic"):
        results["backbones"]["alpha"][task]["linear"]["converged"] = False
    after = write_report(validate_results(results), tmp_path / "after")
    page = after.html.read_text()
    accuracy, clean = (
        show(results["backbones"]["alpha"][task]["linear"][key])
        for task, key in (("fine", "accuracy"), ("semantic", "clean"))
    )
    assert page.count(f"<td>{accuracy} †<small>") == 2  # overview, and beside nearest neighbours
    assert page.count(f"<td>{clean} †<small>") == 3  # also beside shifted photographs
    assert page.count("alpha <wbr>†</th>") == 2  # columns of style and of class by transformation
    assert "beta †" not in page
    latex = (tmp_path / "after" / "tables" / "overview.tex").read_text()
    assert latex.count(r"$\dagger$") == 3  # style, class of unchanged and of transformed photographs
    before, marked = (tmp_path / name / "tables" / "overview.csv" for name in ("before", "after"))
    assert before.read_text() == marked.read_text()
