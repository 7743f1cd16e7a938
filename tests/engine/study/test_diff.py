"""`diff`: what one network reads better or worse than another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from scipy import stats
from tests.conftest import the_json
from tests.engine.report.real import real_results

from substyle.engine.cli import main
from substyle.engine.probes.outcomes import Change, ProbeOutcome, changes
from substyle.engine.stages.results import validate_results
from substyle.engine.study.compare import require_comparable
from substyle.engine.study.diff import Condition, chosen, diff
from substyle.errors import ConfigError

NAMES = ("identity", "jpeg", "gaussian_blur", "grayscale")


def outcome(shares: list[float], seed: int, count: int = 400, **more: Any) -> ProbeOutcome:  # noqa: ANN401
    """Probes of transformation and class that are right with a probability for each transformation."""
    rng, roles = np.random.default_rng(seed), ("train",) * len(NAMES)
    scores = {
        f"{task}/linear": (rng.random((len(NAMES), count)) < np.array(shares)[:, None]).astype(np.float32)
        for task in ("transformation", "class")
    }
    return ProbeOutcome({}, scores, tuple(f"{n:04}" for n in range(count)), NAMES, NAMES, roles, 400, seed, **more)


def of(found: list[Change] | tuple[Change, ...], score: str, name: str) -> Change:
    return next(change for change in found if (change.score, change.transformation) == (score, name))


def test_differences_are_paired_and_agree_with_a_t_test() -> None:
    before, after = outcome([0.9, 0.8, 0.5, 0.5], 0), outcome([0.9, 0.6, 0.5, 0.7], 1)
    found = changes(before, after)
    assert len(found) == 2 * len(NAMES)
    for change in found:
        t = NAMES.index(change.transformation)
        a_N, b_N = (each.scores[change.score][t].astype(float) for each in (before, after))
        assert change.value == pytest.approx(b_N.mean() - a_N.mean(), abs=1e-6)
        known = stats.ttest_rel(b_N, a_N)
        low, high = known.confidence_interval(0.95)
        assert change.low == pytest.approx(low, abs=0.012)
        assert change.high == pytest.approx(high, abs=0.012)
        assert change.low_all < change.low < change.high < change.high_all
        assert change.p == pytest.approx(known.pvalue, rel=0.6, abs=0.02)
        assert change.p_holm is not None
        assert change.p is not None
        assert change.p_holm >= change.p


def test_only_photographs_that_both_have_are_compared() -> None:
    before, after = outcome([0.9] * 4, 0), outcome([0.5] * 4, 1, 200)
    found = of(changes(before, after), "class/linear", "jpeg")
    assert found.before == pytest.approx(before.scores["class/linear"][1, :200].mean())
    assert found.units == 200
    strangers = ProbeOutcome(**{**vars(after), "keys": tuple(f"x{n}" for n in range(200))})
    with pytest.raises(ConfigError, match="common test photographs"):
        diff(("a", before), ("b", strangers))


def test_equal_networks_seldom_differ() -> None:
    """Holm's correction holds the share of runs with any false finding, and intervals cover."""
    runs, covered, false = 120, 0, 0
    for seed in range(runs):
        found = changes(outcome([0.7] * 4, 2 * seed, 80), outcome([0.7] * 4, 2 * seed + 1, 80))
        covered += sum(change.low <= 0 <= change.high for change in found)
        false += any(change.p_holm is not None and change.p_holm < 0.05 for change in found)
    assert covered / (8 * runs) > 0.93
    assert false / runs < 0.1


def test_trainings_widen_intervals() -> None:
    rng = np.random.default_rng(0)
    varied = {"class/linear": 0.7 + 0.1 * rng.standard_normal((5, 4)).astype(np.float32)}
    pair = outcome([0.7] * 4, 0), outcome([0.6] * 4, 1)
    narrow = of(changes(*pair), "class/linear", "jpeg")
    with_trainings = (ProbeOutcome(**{**vars(each), "by_resample": varied}) for each in pair[:1])
    other = {"class/linear": 0.6 + 0.1 * rng.standard_normal((5, 4)).astype(np.float32)}
    wide = of(changes(*with_trainings, ProbeOutcome(**{**vars(pair[1]), "by_resample": other})), "class/linear", "jpeg")
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    assert wide.value == narrow.value


def test_a_probe_that_has_not_converged_decides_nothing() -> None:
    late = {"class": {"linear": {"converged": False}}}
    after = ProbeOutcome(**{**vars(outcome([0.9, 0.5, 0.5, 0.5], 1)), "results": late})
    before = outcome([0.9, 0.8, 0.5, 0.5], 0)
    made = diff(("old", before), ("new", after))
    assert {change.score for change in made.clear} == {"transformation/linear"}
    assert "† a probe has not converged" in made.text()
    with pytest.raises(ConfigError, match="converged"):
        diff(("old", before), ("new", after), [Condition.of("class under jpeg < -2")])


@pytest.mark.parametrize("change", ["", "photographs", "canvas", "transformations", "unknown"])
def test_runs_of_other_photographs_or_variants_are_refused(change: str) -> None:
    runs = [(name, real_results()) for name in "ab"]
    _, other = runs[1]
    if change in ("photographs", "unknown"):
        for _, results in runs[:2]:
            results["identity"] = {"data": None if change == "unknown" else str(id(results))}
    elif change == "canvas":
        other["canvas"] += 32
    elif change == "transformations":
        other["transformations"] = other["transformations"][:6]
    if not change:
        require_comparable(runs)
        return
    with pytest.raises(ConfigError, match="photographs" if change == "unknown" else change):
        require_comparable(runs)


def test_the_headline_is_the_largest_clear_change_of_class() -> None:
    made = diff(("old", outcome([0.9, 0.8, 0.5, 0.5], 0)), ("new", outcome([0.9, 0.5, 0.5, 0.5], 1)))
    change = of(made.changes, "class/linear", "jpeg")
    half = 50 * (change.high - change.low)
    assert made.headline().startswith(
        f"new against old: class under jpeg fell {-100 * change.value:.1f} ± {half:.1f} points"
    )
    assert "1 of 4 changes are clear" in made.headline()
    first = outcome([0.7] * 4, 0, 30)
    flipped = {name: np.where(np.arange(30) == 3, 1 - score_TN, score_TN) for name, score_TN in first.scores.items()}
    same = diff(("old", first), ("new", ProbeOutcome(**{**vars(first), "scores": flipped})))
    assert "no clear change of 8" in same.headline()
    assert "test photographs" in same.headline()
    assert json.loads(json.dumps(same.describe()))["names"] == ["old", "new"]


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("class under jpeg < -2", True),
        ("class under jpeg < −2.5", True),
        ("class under jpeg < -29", False),  # the interval does not exclude it
        ("class under jpeg > 2", False),
        ("class under any < -2", True),
        ("class under any > 1", False),
        ("reading of jpeg < -2", True),
        ("class under identity < -2", False),
    ],
)
def test_conditions_are_met_by_whole_intervals(text: str, met: bool) -> None:
    pair = ("old", outcome([0.9, 0.8, 0.5, 0.5], 0)), ("new", outcome([0.9, 0.5, 0.5, 0.5], 1))
    assert bool(diff(*pair, [Condition.of(text)]).failed) == met


@pytest.mark.parametrize("text", ["class < 2", "class under jpeg", "class under jpeg < x", "style of jpeg < 2", ""])
def test_invalid_conditions_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--fail-if"):
        Condition.of(text)


def test_a_condition_that_names_nothing_is_refused() -> None:
    pair = ("old", outcome([0.9] * 4, 0)), ("new", outcome([0.9] * 4, 1))
    with pytest.raises(ConfigError, match=r"a measured transformation: .*jpeg"):
        diff(*pair, [Condition.of("class under jpg < -2")])


@pytest.mark.slow
def test_two_files_of_weights_in_one_pass(
    tmp_path: Path, two_classes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        torch.save({"model_state_dict": timm.create_model("test_resnet").state_dict()}, f"{name}.pth")
    settings = ["canvas=64", "bootstrap=100", "splits.train=0.5", "splits.val=0.2", "splits.test=0.3", "gallery=0"]
    words = ["diff", "a.pth", "b.pth", str(two_classes), "--model", "timm:test_resnet", "--out", "out", "--json"]
    words += ["--suite", "identity,jpeg,grayscale,gaussian_blur"]
    words += [word for text in settings for word in ("--set", text)]
    assert main([*words, "--fail-if", "class under any < -100"]) == 0
    answer = the_json(capsys)
    assert answer["names"] == ["a", "b"]
    assert len(answer["changes"]) == 8
    table = pd.read_csv(answer["table"])
    assert list(table.columns)[:5] == ["score", "transformation", "before", "after", "difference"]
    assert main(["diff", "b", "a", "out", "--json", "--fail-if", "reading of any > -100"]) == 1  # always met
    back = the_json(capsys)
    for change in back["changes"]:
        same = next(c for c in answer["changes"] if all(c[k] == change[k] for k in ("score", "transformation")))
        assert change["difference"] == pytest.approx(-same["difference"])
    assert main(["diff", "a.pth", "b.pth", str(two_classes)]) == 2
    assert "--model" in capsys.readouterr().err
    assert main(["diff", "a", "c", "out"]) == 2
    assert "allowed: a, b" in capsys.readouterr().err


def test_networks_are_found_by_their_labels_in_the_report() -> None:
    results = real_results("a", "b")
    results["backbones"]["a"]["label"] = "CLIP"
    results["backbones"]["b"]["adapter"] = {"backbone": "a", "method": "linear"}
    document = validate_results(results)
    run = {Path("run"): document}
    assert chosen(run, ["CLIP", "CLIP + linear"]) == [(Path("run"), "a"), (Path("run"), "b")]
    with pytest.raises(ConfigError, match=r"allowed: CLIP, CLIP \+ linear"):
        chosen(run, ["CLIP", "other"])
