import csv
from pathlib import Path

from tests.engine.report.real import (
    all_converged,
    real_results,
)

from substyle.engine.report.data import Column, Table
from substyle.engine.report.page import flat, write_tables
from substyle.engine.report.tables import headline_table
from substyle.engine.stages.results import validate_results

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
