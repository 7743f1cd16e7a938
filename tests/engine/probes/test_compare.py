from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from substyle.engine.probes.outcomes import ProbeOutcome, compare_outcomes, differences, holm
from substyle.engine.probes.resampling import balanced_over, resample

SUITE = (
    ("identity", "identity", "train"),
    ("blur_a", "blur", "train"),
    ("blur_b", "blur", "held_out"),
    ("noise_a", "noise", "train"),
    ("noise_b", "noise", "held_out"),
    ("style_a", "style", "train"),
    ("style_b", "style", "train"),
    ("style_c", "style", "held_out"),
)
T, N = len(SUITE), 60
Scores = NDArray[np.float32]


def outcome(scores: dict[str, Scores], **more: Any) -> ProbeOutcome:  # noqa: ANN401
    names, kind, roles = zip(*SUITE, strict=True)
    count = next(iter(scores.values())).shape[1]
    return ProbeOutcome({}, scores, tuple(f"k{n}" for n in range(count)), names, kind, roles, 400, 3, **more)


def scores(share: float, seed: int) -> Scores:
    return (np.random.default_rng(seed).random((T, N)) < share).astype(np.float32)


def step_down(p: list[float]) -> list[float]:
    """Holm's procedure from his paper: the level at which each hypothesis is first rejected, by bisection."""

    def rejected(level: float) -> set[int]:
        out: set[int] = set()
        for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
            if p[i] > level / (len(p) - rank):
                break
            out.add(i)
        return out

    found = []
    for i in range(len(p)):
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if i in rejected(middle) else (middle, high)
        found.append(high)
    return found


def test_holm_is_the_step_down_procedure() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 20):
        p = (rng.random(count) ** 3).tolist()
        assert holm(p) == pytest.approx(step_down(p), abs=1e-12)
    # the textbook example, and equal p values
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([None, 0.04, None]) == [None, 0.04, None]


def test_every_pair_and_metric_once_controls_included() -> None:
    names = (
        "transformation/linear",
        "kind/linear",
        "rotation/linear",
        "equal_transformation/linear",
        "class/linear",
        "multitask/transformation",
    )
    made = {each: outcome({n: scores(0.5, i) for n in names}) for i, each in enumerate(("a", "b", "control:pixels"))}
    rows = compare_outcomes(made)
    json.dumps(rows, allow_nan=False)
    kinds = {(r["task"], r["metric"], r["head"]) for r in rows}
    assert kinds == {
        *(
            ("transformation", "accuracy", "linear"),
            ("equal_transformation", "accuracy", "linear"),
            ("multitask", "transformation", "mlp"),
        ),
        *(("kind", "held_out", "linear"), ("kind", "seen", "linear")),
        *(("rotation", metric, "linear") for metric in ("accuracy", "balanced", "styles")),
        *(("class", "original", "linear"), ("class", "transformed", "linear")),
    }
    pairs = [("a", "b"), ("a", "control:pixels"), ("b", "control:pixels")]
    assert sorted((*kind, *pair) for kind in kinds for pair in pairs) == sorted(
        (r["task"], r["metric"], r["head"], r["a"], r["b"]) for r in rows
    )
    for _, family in itertools.groupby(sorted(rows, key=key), key):
        listed = list(family)
        assert [r["p_holm"] for r in listed] == pytest.approx(step_down([r["p"] for r in listed]), abs=1e-12)


def key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["task"], row["metric"], row["head"]


def test_numbers_of_a_row_are_those_of_the_two_scores() -> None:
    """Difference, both intervals, error and p, compared with the resamples of each side.

    The interval of a difference that generalises to unseen transformations is over these too.
    """
    a, b = scores(0.7, 1), scores(0.5, 2)
    a[3, :5] = np.nan
    left, right = np.where(np.isnan(a + b), np.nan, a), np.where(np.isnan(a + b), np.nan, b)
    rows = compare_outcomes({"a": outcome({"kind/linear": a}), "b": outcome({"kind/linear": b})})
    names, kind, _ = zip(*SUITE, strict=True)
    weights = {
        "held_out": balanced_over([2, 4, 7], kind, ["blur", "noise", "style"]),
        "seen": balanced_over([1, 3, 5, 6], kind, ["blur", "noise", "style"]),
    }
    assert len(names) == T
    for row in rows:
        weight = weights[row["metric"]]
        sides = [resample(side, 400, 3) for side in (left, right)]
        one, two = (sides[0].mean(weight) - sides[1].mean(weight)), sides[0].two_way(weight) - sides[1].two_way(weight)
        difference = row["difference"]
        assert difference["value"] == pytest.approx(one.value, abs=1e-6)
        error, beside = (two, "one_way") if row["metric"] == "held_out" else (one, "two_way")
        other = one if beside == "one_way" else two
        assert [difference["low"], difference["high"]] == pytest.approx(error.ci95, abs=1e-6)
        assert difference[beside] == pytest.approx(other.ci95, abs=1e-6)
        assert difference["se"] == pytest.approx(error.se, abs=1e-6)
        assert difference.keys() == {"value", "low", "high", "n", "unit", beside, "se", "ci90"}
        student = stats.t(2 if row["metric"] == "held_out" else N - 1)  # three transformations, or all photographs
        assert row["p"] == pytest.approx(2 * student.sf(abs(one.value) / error.se), rel=1e-4)
        half = student.isf(0.05) * error.se
        assert difference["ci90"] == pytest.approx([one.value - half, one.value + half], abs=1e-6)


def test_the_error_of_training_is_that_of_paired_resamples() -> None:
    rng = np.random.default_rng(5)
    common = rng.normal(0.6, 0.05, size=(6, 1))  # what the draw of training photographs does to both
    own = [np.asarray(common + rng.normal(0, 0.001, size=(6, T)), np.float32) for _ in range(2)]
    sides = [
        outcome({"transformation/linear": scores(0.6, i)}, by_resample={"transformation/linear": own[i]})
        for i in range(2)
    ]
    plain = [outcome({"transformation/linear": scores(0.6, i)}) for i in range(2)]
    (row,), (without,) = (compare_outcomes({"a": x, "b": y}) for x, y in (sides, plain))
    found, alone = row["difference"], without["difference"]
    expected = (own[0] - own[1]).mean(axis=1).std(ddof=1)
    assert found["se_training"] == pytest.approx(expected, rel=1e-4)
    assert found["se_training"] < 0.2 * own[0].mean(axis=1).std(ddof=1)
    assert found["se"] == pytest.approx(np.hypot(alone["se"], expected), rel=1e-6)
    assert (found["low"], found["high"]) == (alone["low"], alone["high"])


@pytest.mark.slow
def test_five_probes_on_resamples_count_as_five() -> None:
    """Equal backbones, of which the draw of training photographs makes one or the other better: each head a study."""
    rng, heads = np.random.default_rng(8), [f"transformation/{k}" for k in range(1000)]
    sides = {}
    for name in "ab":
        error_KS = rng.normal(0, 0.08, (len(heads), 6))
        drawn = {head: rng.random((T, 100)) < 0.6 + error_KS[k, 0] for k, head in enumerate(heads)}
        resampled = {head: np.float32(0.6) + np.tile(error_KS[k, 1:, None], T) for k, head in enumerate(heads)}
        sides[name] = outcome(
            {head: right_TN.astype(np.float32) for head, right_TN in drawn.items()}, by_resample=resampled
        )
    rows = compare_outcomes(sides)
    assert len(rows) == len(heads)
    assert np.mean([row["p"] < 0.05 for row in rows]) < 0.08
    ends = [row["difference"]["ci90"] for row in rows]
    assert np.mean([not low < 0 < high for low, high in ends]) < 0.13


def test_groups_widen_the_interval() -> None:
    """Ten grouped copies of each photograph give the same interval as one."""
    made = {name: scores(share, seed)[:, :12] for name, share, seed in (("a", 0.7, 1), ("b", 0.5, 2))}
    copies = {name: outcome({"transformation/linear": np.tile(score, 10)}) for name, score in made.items()}
    grouped = {
        name: outcome({"transformation/linear": np.tile(score, 10)}, group_N=tuple(range(12)) * 10)
        for name, score in made.items()
    }
    (apart,), (together,) = compare_outcomes(copies), compare_outcomes(grouped)
    assert together["difference"]["se"] == pytest.approx(apart["difference"]["se"] * np.sqrt(10), rel=0.15)


def test_equal_scores_differ_by_nothing() -> None:
    same = {name: outcome({"transformation/linear": scores(0.5, 4)}) for name in "ab"}
    (row,) = compare_outcomes(same)
    assert (row["difference"]["value"], row["p"], row["p_holm"]) == (0.0, 1.0, 1.0)
    assert 0 < row["difference"]["se"] < 0.01


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_holm_says() -> None:
    """Few of 200 studies of four equally good backbones find a difference."""
    rng = np.random.default_rng(6)
    alarms = 0
    for _ in range(200):
        difficulty = rng.normal(size=(1, N)) + rng.normal(size=(T, 1))
        made = {}
        for name in "abcd":
            # each backbone is good at its own transformations, and on average as good as the others
            logit = difficulty + rng.normal(0, 0.5, size=(T, 1))
            made[name] = outcome(
                {"rotation/linear": (rng.random((T, N)) < 1 / (1 + np.exp(-logit))).astype(np.float32)}
            )
        rows = [r for r in compare_outcomes(made) if r["metric"] == "accuracy"]
        alarms += any(r["p_holm"] < 0.05 for r in rows)
    assert alarms / 200 < 0.1


def test_transformations_of_another_role_are_not_compared() -> None:
    """Seen in one run and held out in the other: a difference would be of the roles."""
    seen_T1 = np.array([role == "train" for _, _, role in SUITE])[:, None]
    rng = np.random.default_rng(0)
    first = outcome({"kind/linear": (rng.random((T, N)) < np.where(seen_T1, 0.95, 0.5)).astype(np.float32)})
    swapped = tuple({"blur_a": "held_out", "blur_b": "train"}.get(name, role) for name, _, role in SUITE)
    of_swapped_T1 = np.array([role == "train" for role in swapped])[:, None]
    made = (rng.random((T, N)) < np.where(of_swapped_T1, 0.95, 0.5)).astype(np.float32)
    second = replace(outcome({"kind/linear": made}), roles=swapped)
    found = {row["metric"]: row["difference"]["value"] for row in differences(("a", first), ("b", second))}
    assert found.keys() == {"held_out", "seen"}
    assert all(abs(value) < 0.25 for value in found.values())
