"""Differences of fine-tuned backbones, against numpy and scipy."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from tests.engine.report.real import of_probes, real_results

from substyle.engine.extensions.finetune.section import finetuned
from substyle.engine.report.data import labels_of
from substyle.engine.results.model import entry_of
from substyle.engine.stages.results import validate_results
from substyle.engine.study.report import write_report

STYLE = {"class": (0.70, 0.72, 0.71), "joint": (0.80, 0.83, 0.81), "transformation": (0.90, 0.70, 0.71)}
HALF = 0.013  # of intervals of comparisons


@pytest.fixture
def results() -> Any:  # noqa: ANN401
    names = {f"finetuned:{o}-{s}": (o, s, STYLE[o][s]) for o in STYLE for s in range(3)}
    made = of_probes(real_results("alpha", *names))
    made["backbones"]["alpha"]["transformation"]["linear"]["accuracy"] = entry_of(0.75, (0.74, 0.76))
    for name, (objective, seed, accuracy) in names.items():
        facts = {"backbone": "alpha", "objective": objective, "seed": seed, "transformations": []}
        made["backbones"][name]["spec"]["finetuned"] = facts
        made["backbones"][name]["transformation"]["linear"]["accuracy"]["value"] = accuracy
    scores = {
        name: backbone["transformation"]["linear"]["accuracy"]["value"] for name, backbone in made["backbones"].items()
    }
    made["comparisons"] = [
        {"task": "transformation", "metric": "accuracy", "head": "linear", "a": a, "b": b}
        | {"difference": entry_of(apart, (apart - HALF, apart + HALF))}
        for a, b in combinations(scores, 2)
        for apart in (scores[a] - scores[b],)
    ]
    return made


def test_differences_are_means_over_seeds(results: Any) -> None:  # noqa: ANN401
    rows = {(row[1], row[2]): row for row in finetuned(validate_results(results)).rows}
    style = {objective: np.array(accuracies) for objective, accuracies in STYLE.items()}
    for objective, accuracy in style.items():
        _, _, _, seeds, was, after, change, difference, converged = rows[objective, "Transformation"]
        assert (seeds, was, converged) == (3, 0.75, "yes")
        assert after == pytest.approx(accuracy.mean())
        assert change[0] == pytest.approx(accuracy.mean() - 0.75)
        if objective == "class":
            assert difference is None
            continue
        differences = accuracy - style["class"]
        of_seeds = ttest_1samp(differences, 0.0).confidence_interval(0.95)
        half = np.hypot((of_seeds.high - of_seeds.low) / 2, HALF)
        mean = differences.mean()
        assert difference == pytest.approx((mean, mean - half, mean + half))


def test_the_page_has_a_section(results: Any, tmp_path: Any) -> None:  # noqa: ANN401
    page = write_report(validate_results(results), tmp_path).html.read_text()
    assert 'id="finetuned"' in page
    assert "alpha + joint, seed 1" in page
    assert labels_of(validate_results(results))["finetuned:class-0"] == "alpha + class, seed 0"
