from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import slow_after
from tests.engine.probes.conftest import Make, Quick
from tests.tables import with_copies

from substyle.engine.probes import single_task
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.linear import resampled_images
from substyle.engine.probes.outcomes import ProbeOutcome
from substyle.engine.probes.run import run_probes
from substyle.errors import SubstyleError


def plain(outcome: ProbeOutcome) -> dict[str, Any]:
    """Results after a round trip through strict JSON."""
    results: dict[str, Any] = json.loads(json.dumps(outcome.results, allow_nan=False))
    return results


def holds(estimate: dict[str, Any]) -> bool:
    return bool(estimate["low"] - 1e-6 <= estimate["value"] <= estimate["high"] + 1e-6)


def test_the_multi_task_probe_stands_beside_its_twins(make_table: Make, quick: Quick) -> None:
    """Differences are paired, and all three take as many steps."""
    config = quick(tasks=("multitask",), multitask_steps=80)
    results = plain(run_probes(make_table(images=200, style=4.0), config, out_dir=None, quiet=True))
    joint = results["multitask"]
    assert joint["task_weight"] == 0.5
    for part in ("transformation", "class"):
        assert joint[part]["value"] > 0.8
        difference = joint["difference"][part]
        apart = joint[part]["value"] - joint["single_task"][part]["value"]
        assert difference["value"] == pytest.approx(apart)
        assert holds(difference)
        assert difference["low"] <= difference["ci90"][0] + 1e-3
        assert difference["ci90"][1] <= difference["high"] + 1e-3
    assert set(joint["single_task"]["training"]) == {"twin-transformation", "twin-class"}
    for training in (joint, *joint["single_task"]["training"].values()):
        assert training["steps"] <= training["certificate"]["steps"]


def test_saved_probes_predict_what_is_reported(make_table: Make, quick: Quick, tmp_path: Path) -> None:
    table = make_table(images=200, style=1.0)
    config = quick(mlp_steps=10, multitask_steps=5)
    outcome = run_probes(table, config, out_dir=tmp_path, quiet=True, metadata={"canvas": 224})
    saved = {path.name: Probe.load(path) for path in tmp_path.iterdir()}
    heads = [f"{task}-{head}" for task in ("transformation", "kind", "class") for head in ("linear", "mlp")]
    assert set(saved) == {f"{name}.safetensors" for name in (*heads, "multitask-mlp")}
    assert {probe.metadata["canvas"] for probe in saved.values()} == {224}
    x = table.x_TND[:, table.rows(2)]
    for head in ("linear", "mlp"):
        picked = [saved[f"transformation-{head}.safetensors"].predict(x[t]).argmax(1) == t for t in range(8)]
        accuracy = plain(outcome)["transformation"][head]["accuracy"]["value"]
        assert np.mean(picked) == pytest.approx(accuracy, abs=0.005)


@pytest.mark.parametrize(("width", "present"), slow_after(1, [(8, False), (9, True), (20, True)]))
def test_equal_width_is_for_wider_embeddings(make_table: Make, quick: Quick, width: int, present: bool) -> None:
    config = quick(tasks=("transformation", "kind"), heads=("linear",))
    outcome = run_probes(make_table(width=width), config, out_dir=None, quiet=True)
    assert ("equal_width" in plain(outcome)) is present
    assert ("equal_transformation/linear" in outcome.scores) is ("equal_rotation/linear" in outcome.scores) is present
    if present:
        entry = plain(outcome)["equal_width"]
        assert set(entry) == {"dim", "transformation", "rotation"}
        assert entry["dim"] == 8
        accuracy = np.nanmean(outcome.scores["equal_transformation/linear"])
        assert entry["transformation"]["accuracy"]["value"] == pytest.approx(accuracy, abs=1e-6)
        assert set(entry["rotation"]["by_transformation"]) == set(outcome.transformations[1:])


def test_photographs_of_one_folder_are_resampled_together(
    make_table: Make, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ten copies of each photograph, intervals by folder are wider, and all copies are drawn together."""
    drawn: list[np.ndarray] = []

    def spy(*arguments: Any) -> np.ndarray:  # noqa: ANN401
        drawn.append(resampled_images(*arguments))
        return drawn[-1]

    monkeypatch.setattr(single_task, "resampled_images", spy)
    table = make_table(images=40, style=0.4)
    copies = with_copies(table, 10)
    known = replace(copies, first_N=np.arange(400) // 10 * 10)
    config = quick(tasks=("transformation",), heads=("linear",), resamples=8, equal_width=0)
    outcomes = [
        run_probes(given, replace(config, resample_by=by), out_dir=None, quiet=True)
        for given, by in ((copies, "photograph"), (copies, "folder"), (known, "photograph"))
    ]
    apart, together, near = (plain(outcome)["transformation"]["linear"]["accuracy"] for outcome in outcomes)
    assert (near["low"], near["high"]) == (together["low"], together["high"])
    assert together["value"] == apart["value"]
    assert together["high"] - together["low"] > 2 * (apart["high"] - apart["low"])
    # of 8 folders, or 80 photographs
    assert (apart["unit"], together["unit"], together["n"]) == ("photograph", "folder", 8)
    assert apart["n"] == 80
    spread = [times_SN.reshape(8, 40, 10).std(axis=2).max() for times_SN in drawn]
    assert len(spread) == 3
    assert spread[0] > 0.5
    assert spread[1] == spread[2] == 0.0
    assert outcomes[0].group_N is None
    groups = outcomes[1].group_N
    assert groups is not None
    folders = [key.split("/")[0] for key in outcomes[1].keys]
    assert len(set(groups)) == len(set(folders)) == len(set(zip(groups, folders, strict=True)))


def test_what_says_nothing_is_at_chance(make_table: Make, quick: Quick) -> None:
    """On pure noise all intervals contain chance, including the rotation's."""
    table = make_table(images=300)
    noise = np.random.default_rng(9).normal(size=table.x_TND.shape).astype(np.float32)
    config = quick(tasks=("transformation", "kind", "class"), heads=("linear",))
    results = plain(run_probes(replace(table, x_TND=noise), config, out_dir=None, quiet=True))
    transformation, kind, class_ = (results[task]["linear"] for task in ("transformation", "kind", "class"))
    assert transformation["accuracy"]["value"] == pytest.approx(1 / 8, abs=0.06)
    assert kind["seen"]["value"] == pytest.approx(1 / 4, abs=0.08)
    assert abs(kind["gap"]["value"]) < 0.1
    assert class_["original"]["value"] == pytest.approx(1 / 3, abs=0.2)


def test_the_same_seed_gives_the_same_results(make_table: Make, quick: Quick) -> None:
    table = make_table(images=60, style=0.5)
    runs = [
        run_probes(table, quick(seed=seed, mlp_steps=10, multitask_steps=10), out_dir=None, quiet=True)
        for seed in (0, 0, 1)
    ]
    assert runs[0].results == runs[1].results
    assert runs[0].results != runs[2].results
    for name, score in runs[0].scores.items():
        np.testing.assert_array_equal(score, runs[1].scores[name])
    for name, own in runs[0].by_resample.items():
        np.testing.assert_array_equal(own, runs[1].by_resample[name])


def test_without_classes(make_table: Make, quick: Quick) -> None:
    results = plain(run_probes(make_table(classes=0), quick(heads=("linear",)), out_dir=None, quiet=True))
    assert results["class"] is None
    assert results["multitask"] is None
    assert results["transformation"]["linear"]["accuracy"]["value"] > 0.8


def test_indistinct_rows_do_not_count(make_table: Make, quick: Quick) -> None:
    """A transformation indistinct from identity has no score."""
    distinct = np.ones((8, 120), bool)
    distinct[6] = False
    distinct[2, ::2] = False
    table = make_table(distinct_TN=distinct)
    config = quick(tasks=("transformation", "kind"), heads=("linear",))
    outcome = run_probes(table, config, out_dir=None, quiet=True)
    results = plain(outcome)
    transformation = results["transformation"]["linear"]
    assert transformation["by_transformation"]["tone_a"] is None
    assert results["kind"]["linear"]["by_transformation"]["tone_a"] == {
        "accuracy": None, "role": "train", "kind": "tone",
    }  # fmt: skip
    counts_CC = np.array(transformation["confusion"]["counts"])
    right = np.nanmean(outcome.scores["transformation/linear"])
    assert counts_CC.trace() / counts_CC.sum() == pytest.approx(right, abs=1e-6)
    counts = counts_CC.sum(1)
    test = table.rows(2)
    assert counts[6] == 0
    assert counts[2] == distinct[2, test].sum()
    assert np.isnan(outcome.scores["transformation/linear"][~distinct[:, test]]).all()


@pytest.mark.parametrize("split", [0, 2])
def test_embeddings_that_are_not_finite_are_refused(make_table: Make, quick: Quick, split: int) -> None:
    table = make_table()
    table.x_TND[2, table.rows(split)[3], 4] = np.nan
    with pytest.raises(SubstyleError, match="NaN or infinite"):
        run_probes(table, quick(), out_dir=None, quiet=True)


def test_the_rotation_ignores_roles_and_its_own_transformation(make_table: Make, quick: Quick) -> None:
    """A held-out transformation that resembles its class is predicted; one that does not is not."""
    suite = (
        ("identity", "identity", "train"), ("blur_a", "blur", "train"), ("blur_b", "blur", "held_out"),
        ("odd_a", "odd", "train"), ("odd_b", "odd", "train"),
    )  # fmt: skip
    table = make_table(images=200, suite=suite)
    rng = np.random.default_rng(0)
    x = table.x_TND.astype(np.float32)
    x[2] = x[1] + 0.1 * rng.normal(size=x[1].shape)
    x[4] = x[1] + 0.1 * rng.normal(size=x[1].shape)  # looks like blur, so that odd_b fails when it is held out
    config = quick(tasks=("kind",), heads=("linear",))
    outcome = run_probes(replace(table, x_TND=x), config, out_dir=None, quiet=True)
    turned = plain(outcome)["kind_rotation"]["linear"]["by_transformation"]
    assert set(turned) == {"blur_a", "blur_b", "odd_a", "odd_b"}
    assert turned["odd_b"]["accuracy"]["value"] < 0.3
    assert outcome.scores["rotation/linear"].shape == (5, 40)
    assert np.isnan(outcome.scores["rotation/linear"][0]).all()


def test_a_suite_of_identity_alone(make_table: Make, quick: Quick) -> None:
    table = make_table(suite=(("identity", "identity", "train"),))
    results = plain(run_probes(table, quick(heads=("linear",)), out_dir=None, quiet=True))
    assert results["transformation"] is results["kind"] is results["multitask"] is None
    assert results["class"]["linear"]["original"]["value"] > 0.9
    assert results["class"]["linear"]["transformed"] is None
