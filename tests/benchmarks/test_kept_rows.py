"""Rows of kept studies are their numbers, and invent nothing."""

from __future__ import annotations

from benchmarks import kept_rows
from benchmarks.study_table import kept_study

from substyle.engine.extensions.site.row import rows_of


def test_scores_of_other_photographs_say_how_many() -> None:
    kept = kept_study("labels")
    for row in rows_of(kept_rows.document(kept)):
        of_label = kept["backbones"][row.backbone.name]["labels"]["by_label"]
        found = {score.key.removeprefix("label_"): score.n for score in row.scores if score.stage == "labels"}
        assert found == {name: label["images"] for name, label in of_label.items()}
