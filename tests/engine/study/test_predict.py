from __future__ import annotations

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from substyle.engine.cli import main
from substyle.engine.study.predict import write_predictions

CLASSES = [{"label": "cat", "probability": 0.75}, {"label": "dog", "probability": 0.25}]
ANSWER = {
    "predictions": [
        {"key": "a,b.jpg", "outputs": {"class": CLASSES}},
        {"key": "c.jpg", "outputs": {"class": [{"label": "dog", "probability": 1.0}], "transformation": []}},
    ]
}
ROWS = [("a,b.jpg", "class", 1, "cat", 0.75), ("a,b.jpg", "class", 2, "dog", 0.25), ("c.jpg", "class", 1, "dog", 1.0)]


def test_predictions_are_written(tmp_path: Path) -> None:
    write_predictions(ANSWER, tmp_path / "new" / "p.parquet")
    assert [tuple(row.values()) for row in pq.read_table(tmp_path / "new" / "p.parquet").to_pylist()] == ROWS
    write_predictions(ANSWER, tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["key", "output", "rank", "label", "probability"]
    assert [(r["key"], r["output"], int(r["rank"]), r["label"], float(r["probability"])) for r in rows] == ROWS


def test_another_format_is_refused_before_anything_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "nothing.safetensors", ".", "--out", "p.xlsx"]) == 2
    assert ".csv or .parquet" in capsys.readouterr().err
