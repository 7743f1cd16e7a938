"""Rows of kept studies are their numbers, and invent nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import kept_rows
from benchmarks.study_table import kept_study

from substyle.engine.extensions.site.directory import add_rows, read_directory
from substyle.engine.extensions.site.row import rows_of
from substyle.engine.extensions.site.site import MAX_PAGE, write_site


def test_rows_are_the_numbers_of_the_summaries(tmp_path: Path) -> None:
    rows = list(kept_rows.rows())
    assert add_rows(rows, tmp_path).refused == {}
    assert read_directory(tmp_path).bad == {}
    kept = json.loads((kept_rows.RESULTS / "study-families.json").read_text())
    own = {row.backbone.name: row for row in rows if (row.study.name, row.created) == (kept["name"], kept["created"])}
    assert own.keys() == kept["backbones"].keys()
    for name, row in own.items():
        scores = {score.key: score for score in row.scores}
        for key, task, score in (("transformation", "fine", "accuracy"), ("original", "semantic", "clean")):
            found = kept["backbones"][name][task]["linear"]
            assert scores[f"{key}_linear"].value == found[score]
            assert scores[f"{key}_linear"].n == kept["splits"]["test"]
        assert (row.backbone.digest, row.data.digest, row.suite.digest) == (None, None, None)
        assert {each.digest for each in row.suite.transformations} == {None}


def test_scores_of_other_photographs_say_how_many() -> None:
    kept = kept_study("labels")
    for row in rows_of(kept_rows.document(kept)):
        of_label = kept["backbones"][row.backbone.name]["labels"]["by_label"]
        found = {score.key.removeprefix("label_"): score.n for score in row.scores if score.stage == "labels"}
        assert found == {name: label["images"] for name, label in of_label.items()}


@pytest.mark.slow
def test_the_site_of_all_kept_studies(tmp_path: Path) -> None:
    assert kept_rows.main(["--to", str(tmp_path / "rows")]) == 0
    made = write_site([tmp_path / "rows"], tmp_path / "site")
    studies = [json.loads(path.read_text()) for path in kept_rows.RESULTS.glob("study-*.json")]
    assert made.tables == len({(each["name"], each["created"]) for each in studies})
    assert made.rows == sum(len(each["backbones"]) for each in studies)
    assert max(path.stat().st_size for path in (tmp_path / "site").rglob("*.html")) <= MAX_PAGE
