"""Differences of fine-tuned backbones, against numpy and scipy."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from tests.engine.report.real import of_probes, real_results

from substyle.engine.extensions.finetune.section import finetuned
from substyle.engine.results.model import entry_of
from substyle.engine.stages.results import validate_results

STYLE = {"class": (0.70, 0.72, 0.71), "joint": (0.80, 0.83, 0.81), "transformation": (0.90, 0.70, 0.71)}


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
        | {"difference": entry_of(apart, (apart - 0.013, apart + 0.013))}
        for a, b in combinations(scores, 2)
        for apart in (scores[a] - scores[b],)
    ]
    return made


def test_differences_are_means_over_seeds(results: Any) -> None:  # noqa: ANN401
    rows = {(row[1], row[2]): row for row in finetuned(validate_results(results)).rows}
    style = {
        o: np.array(
            [
                results["backbones"][f"finetuned:{o}-{s}"]["transformation"]["linear"]["accuracy"]["value"]
                for s in range(3)
            ]
        )
        for o in STYLE
    }
    before = results["backbones"]["alpha"]["transformation"]["linear"]["accuracy"]["value"]
    for objective, accuracy in style.items():
        _, _, _, seeds, was, after, change, difference, converged = rows[objective, "Transformation"]
        assert converged == "yes"
        assert (seeds, was) == (3, before)
        assert after == pytest.approx(accuracy.mean())
        assert change[0] == pytest.approx(accuracy.mean() - before)
        if objective == "class":
            assert difference is None
            continue
        differences = accuracy - style["class"]
        assert difference[0] == pytest.approx(differences.mean())
        halves = []
        for seed in range(3):
            pair = {f"finetuned:{o}-{seed}" for o in (objective, "class")}
            (row,) = [
                row
                for row in results["comparisons"]
                if {row["a"], row["b"]} == pair and (row["task"], row["head"]) == ("transformation", "linear")
            ]
            halves.append((row["difference"]["high"] - row["difference"]["low"]) / 2)
        of_seeds = ttest_1samp(differences, 0.0).confidence_interval(0.95)
        half = np.hypot((of_seeds.high - of_seeds.low) / 2, np.mean(halves))
        assert difference[1:] == pytest.approx((differences.mean() - half, differences.mean() + half))
