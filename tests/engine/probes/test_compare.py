from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from substyle.engine.probes.outcomes import ProbeOutcome, compare_outcomes, holm
from substyle.errors import SubstyleError

NAMES = ("identity", "blur_a", "blur_b", "noise_a", "noise_b", "style_a", "style_b", "style_c")
KIND = tuple(name.partition("_")[0] for name in NAMES)
ROLES = tuple("held_out" if name in ("blur_b", "noise_b", "style_c") else "train" for name in NAMES)
T, N = len(NAMES), 60
Scores = NDArray[np.float32]


def outcome(scores: dict[str, Scores], **more: Any) -> ProbeOutcome:  # noqa: ANN401
    return ProbeOutcome({}, scores, tuple(f"k{n}" for n in range(N)), NAMES, KIND, ROLES, 400, 3, **more)


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
    tasks = ("transformation", "kind", "rotation", "equal_transformation", "class")
    names = [*(f"{task}/linear" for task in tasks), "multitask/transformation"]
    made = {each: outcome({n: scores(0.5, i) for n in names}) for i, each in enumerate(("a", "b", "control:pixels"))}
    rows = compare_outcomes(made)
    json.dumps(rows, allow_nan=False)
    kinds = {
        *((task, "accuracy", "linear") for task in ("transformation", "equal_transformation")),
        *(("kind", metric, "linear") for metric in ("held_out", "seen")),
        *(("rotation", metric, "linear") for metric in ("accuracy", "balanced", "styles")),
        *(("class", metric, "linear") for metric in ("original", "transformed")),
        ("multitask", "transformation", "mlp"),
    }
    pairs = [("a", "b"), ("a", "control:pixels"), ("b", "control:pixels")]
    assert sorted((*kind, *pair) for kind in kinds for pair in pairs) == sorted(
        (r["task"], r["metric"], r["head"], r["a"], r["b"]) for r in rows
    )
    for kind in kinds:
        listed = [r for r in rows if (r["task"], r["metric"], r["head"]) == kind]
        assert [r["p_holm"] for r in listed] == pytest.approx(step_down([r["p"] for r in listed]), abs=1e-12)


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


@pytest.mark.parametrize("document", ["[]", '{"group_N": 3}', '{"results": {}, "group_N": [1e400]}'])
def test_a_document_of_another_kind_is_refused(document: str, tmp_path: Path) -> None:
    outcome({"transformation/linear": scores(0.5, 0)}, group_N=tuple(range(N))).save(tmp_path)
    ProbeOutcome.load(tmp_path)
    (tmp_path / "probes.json").write_text(document)
    with pytest.raises(SubstyleError):
        ProbeOutcome.load(tmp_path)
