from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import slow_after
from tests.engine.probes.conftest import Make, Quick
from tests.engine.report.real import real_results

from substyle.engine.probes import single_task
from substyle.engine.probes.checkpoint import Probe
from substyle.engine.probes.linear import resampled_images
from substyle.engine.probes.outcomes import ProbeOutcome, compare_outcomes
from substyle.engine.probes.run import run_probes
from substyle.engine.report import tables
from substyle.engine.stages.results import validate_results
from substyle.errors import SubstyleError


def plain(outcome: ProbeOutcome) -> dict[str, Any]:
    """Results after a round trip through strict JSON."""
    results: dict[str, Any] = json.loads(json.dumps(outcome.results, allow_nan=False))
    return results


def holds(estimate: dict[str, Any]) -> bool:
    return bool(estimate["low"] - 1e-6 <= estimate["value"] <= estimate["high"] + 1e-6)


NUMBERS = {"value", "low", "high", "n", "unit", "se"}  # of each number of a single-task probe


def test_everything_of_a_backbone(make_table: Make, quick: Quick, tmp_path: Path) -> None:
    """All probes are accurate on easy embeddings, and entries have the documented keys."""
    table = make_table(images=200, style=4.0)
    config = quick(mlp_resamples=2, mlp_steps=80, multitask_steps=2)
    outcome = run_probes(table, config, out_dir=tmp_path, quiet=True, metadata={"canvas": 224})
    results = plain(outcome)
    tasks = {"transformation", "kind", "class", "multitask"}
    assert set(results) == tasks | {"kind_rotation", "kind_redrawn", "equal_width"}
    test = len(table.rows(2))
    training = {
        "linear": {"setting", "edge", "validation", "steps", "converged", "certificate"},
        "mlp": {"setting", "validation", "steps", "converged", "certificate"},
    }
    common = {"by_transformation", "confusion", "chance"}
    for head in ("linear", "mlp"):
        transformation, kind, class_ = (results[task][head] for task in ("transformation", "kind", "class"))
        assert set(transformation) == {"accuracy"} | common | training[head]
        assert set(kind) == {"seen", "held_out", "gap"} | common | training[head]
        assert set(class_) == {"original", "transformed"} | common | training[head]
        assert set(transformation["accuracy"]) == set(kind["seen"]) == NUMBERS | {"two_way", "se_training"}
        assert set(kind["held_out"]) == set(kind["gap"]) == NUMBERS | {"one_way", "se_training"}
        assert set(class_["original"]) == NUMBERS | {"se_training"}  # over one transformation
        assert set(class_["transformed"]) == NUMBERS | {"two_way", "se_training"}
        accuracy = transformation["accuracy"]["value"]
        assert accuracy > 0.9
        assert holds(transformation["accuracy"])
        assert np.mean(list(transformation["by_transformation"].values())) == pytest.approx(accuracy, abs=1e-6)
        training_S = outcome.by_resample[f"transformation/{head}"].mean(axis=1)
        assert transformation["accuracy"]["se_training"] == pytest.approx(training_S.std(ddof=1), abs=1e-6)
        # of a normal distribution, which these replicates nearly are
        own = (transformation["accuracy"]["high"] - transformation["accuracy"]["low"]) / 3.92
        assert transformation["accuracy"]["se"] == pytest.approx(
            np.hypot(own, transformation["accuracy"]["se_training"]), rel=0.3
        )
        counts = np.array(transformation["confusion"]["counts"])
        assert counts.sum(1).tolist() == [test] * 8
        assert np.trace(counts) / counts.sum() == pytest.approx(accuracy, abs=1e-6)
        assert kind["seen"]["value"] > 0.9
        assert kind["gap"]["value"] == pytest.approx(kind["seen"]["value"] - kind["held_out"]["value"])
        assert holds(kind["gap"])
        low, high = kind["gap"]["one_way"]
        assert low - 1e-6 <= kind["gap"]["value"] <= high + 1e-6
        by = {name: one["accuracy"]["value"] for name, one in kind["by_transformation"].items()}
        assert kind["by_transformation"]["noise_b"]["role"] == "held_out"
        seen = (by["blur_a"] + by["blur_b"]) / 2
        assert kind["seen"]["value"] == pytest.approx((seen + by["noise_a"]) / 2)
        assert kind["held_out"]["value"] == pytest.approx((by["blur_c"] + by["noise_b"]) / 2)
        assert class_["original"]["value"] > 0.9
        assert class_["by_transformation"]["identity"] == pytest.approx(class_["original"]["value"])
        others = [v for t, v in class_["by_transformation"].items() if t != "identity"]
        assert np.mean(others) == pytest.approx(class_["transformed"]["value"])
        for entry in (transformation, kind, class_):
            setting = {"linear": {"C", "tried"}, "mlp": {"lr", "weight_decay", "width"}}[head]
            assert set(entry["setting"]) == setting
            assert entry["steps"] >= 1
    rotation, redrawn = results["kind_rotation"]["linear"], results["kind_redrawn"]["linear"]
    assert set(rotation["by_transformation"]) == set(table.transformations[1:])
    assert (redrawn["sets"], redrawn["transformations"]) == (2, 2)


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


@pytest.mark.parametrize("classes", [0, 3])
def test_results_are_such_that_the_report_reads(make_table: Make, quick: Quick, classes: int) -> None:
    """With counts, nulls for undefined numbers, and a certificate of each probe in the table."""
    table = make_table(classes=classes, style=0.5)
    outcome = run_probes(table, quick(mlp_steps=2, multitask_steps=2), out_dir=None, quiet=True)
    results = real_results("alpha")
    kept = {key: results["backbones"]["alpha"][key] for key in ("dim", "control", "spec")}
    results["backbones"]["alpha"] = kept | plain(outcome)
    document = validate_results(results)
    (redrawn,) = (row for row in tables.redrawn(document).rows if row[0] == "alpha")
    accuracies = outcome.results["kind_redrawn"]["linear"]["accuracies"]
    assert redrawn[1:3] == (2, pytest.approx(np.mean(accuracies)))
    training = [row for row in tables.training(document).rows if row[0] == "alpha"]
    assert len(training) == (8 if classes else 5)
    assert all("difference" in str(row[-1]) or "gain" in str(row[-1]) for row in training)
    joint = [row for row in tables.multitask(document).rows if row[0] == "alpha"]
    assert [row[1] for row in joint] == ([0.5] if classes else [])


def test_saved_probes_predict_what_is_reported(make_table: Make, quick: Quick, tmp_path: Path) -> None:
    table = make_table(images=200, style=1.0)
    config = quick(mlp_steps=10, multitask_steps=5)
    outcome = run_probes(table, config, out_dir=tmp_path, quiet=True, metadata={"canvas": 224})
    saved = {path.name: Probe.load(path) for path in tmp_path.iterdir()}
    heads = [f"{task}-{head}" for task in ("transformation", "kind", "class") for head in ("linear", "mlp")]
    assert set(saved) == {f"{name}.safetensors" for name in (*heads, "multitask-mlp")}
    for name, probe in saved.items():
        assert probe.metadata["canvas"] == 224
        assert probe.metadata["table"] == "float16"
        assert name.startswith(probe.metadata["task"])
    x = table.x_TND[:, table.rows(2)]
    for head in ("linear", "mlp"):
        picked = [saved[f"transformation-{head}.safetensors"].predict(x[t]).argmax(1) == t for t in range(8)]
        accuracy = plain(outcome)["transformation"][head]["accuracy"]["value"]
        assert np.mean(picked) == pytest.approx(accuracy, abs=0.005)


@pytest.mark.slow
def test_scores_and_resamples_by_name(make_table: Make, quick: Quick) -> None:
    """Scores are (T, N) over test images; accuracies of resampled probes are (S, T)."""
    table = make_table()
    config = quick(resamples=3, mlp_resamples=2, mlp_steps=5, multitask_steps=5)
    outcome = run_probes(table, config, out_dir=None, quiet=True)
    twice = {f"{task}/{head}" for task in ("transformation", "kind", "class") for head in ("linear", "mlp")}
    assert outcome.scores.keys() == twice | {
        "rotation/linear", "equal_transformation/linear", "equal_rotation/linear",
        "multitask/transformation", "multitask/class", "multitask/twin-transformation", "multitask/twin-class",
    }  # fmt: skip
    assert {score.shape for score in outcome.scores.values()} == {(8, len(table.rows(2)))}
    assert {name: own.shape for name, own in outcome.by_resample.items()} == {
        name: (2 if name.endswith("/mlp") else 3, 8) for name in (*twice, "equal_transformation/linear")
    }
    for own in outcome.by_resample.values():
        assert ((own >= 0) & (own <= 1)).all()
    assert outcome.group_N is None
    none = run_probes(table, quick(resamples=0, tasks=("transformation",), heads=("linear",)), out_dir=None, quiet=True)
    assert none.by_resample == {}
    assert "se_training" not in plain(none)["transformation"]["linear"]["accuracy"]


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


def test_what_is_not_asked_for_is_not_there(make_table: Make, quick: Quick) -> None:
    table = make_table()

    def keys(**changes: object) -> set[str]:
        return set(run_probes(table, quick(mlp_steps=2, **changes), out_dir=None, quiet=True).results)

    linear = {"heads": ("linear",), "equal_width": 0}
    assert keys(tasks=("kind",), rotate="none", **linear) == {"kind"}
    assert keys(tasks=("kind",), **linear) == {"kind", "kind_rotation", "kind_redrawn"}
    assert keys(tasks=("transformation", "class"), **linear) == {"transformation", "class"}
    assert keys(tasks=("kind", "transformation"), heads=("mlp",)) == {"kind", "transformation"}
    without = run_probes(table, quick(tasks=("kind",), redraws=0, **linear), out_dir=None, quiet=True).results
    assert without["kind_redrawn"]["linear"] is None


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
    copies = replace(
        table,
        x_TND=np.repeat(table.x_TND, 10, axis=1),
        keys=tuple(f"{n:02d}/{copy}.jpg" for n in range(40) for copy in range(10)),
        label_N=np.repeat(table.label_N, 10),
        split_N=np.repeat(table.split_N, 10),
        distinct_TN=np.repeat(table.distinct_TN, 10, axis=1),
    )
    found = {}
    for by in ("photograph", "folder"):
        config = quick(resample_by=by, tasks=("transformation",), heads=("linear",), resamples=8, equal_width=0)
        found[by] = run_probes(copies, config, out_dir=None, quiet=True)
    known = replace(copies, first_N=np.arange(400) // 10 * 10)
    config = quick(tasks=("transformation",), heads=("linear",), resamples=8, equal_width=0)
    near = run_probes(known, config, out_dir=None, quiet=True)
    apart, together = (plain(outcome)["transformation"]["linear"]["accuracy"] for outcome in found.values())
    alike = plain(near)["transformation"]["linear"]["accuracy"]
    assert (alike["low"], alike["high"]) == (together["low"], together["high"])
    assert together["value"] == apart["value"]
    assert together["high"] - together["low"] > 2 * (apart["high"] - apart["low"])
    # of 8 folders, or 80 photographs
    assert (apart["unit"], together["unit"], together["n"]) == ("photograph", "folder", 8)
    assert apart["n"] == 80
    spread = [times_SN.reshape(8, 40, 10).std(axis=2).max() for times_SN in drawn]
    assert len(spread) == 3
    assert spread[0] > 0.5
    assert spread[1] == spread[2] == 0.0
    assert found["photograph"].group_N is None
    groups = found["folder"].group_N
    assert groups is not None
    folders = [key.split("/")[0] for key in found["folder"].keys]
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


def test_outcomes_survive_the_disk(make_table: Make, quick: Quick, tmp_path: Path) -> None:
    outcome = run_probes(make_table(), quick(tasks=("transformation",), equal_width=0), out_dir=None, quiet=True)
    outcome.save(tmp_path / "outcome")
    loaded = ProbeOutcome.load(tmp_path / "outcome")
    assert loaded.results == plain(outcome)
    assert (loaded.keys, loaded.transformations, loaded.roles) == (
        outcome.keys, outcome.transformations, outcome.roles,
    )  # fmt: skip
    assert loaded.scores.keys() == {"transformation/linear", "transformation/mlp"}
    for name, score in outcome.scores.items():
        np.testing.assert_array_equal(loaded.scores[name], score)
    path = tmp_path / "outcome" / "probes.json"
    whole = json.loads(path.read_text())
    for edited in ({"bootstrap": 10**9}, {"seed": -1}, {"roles": []}, {"transformations": ["x"] * len(outcome.roles)}):
        path.write_text(json.dumps(whole | edited))
        with pytest.raises(SubstyleError, match="invalid probe results"):
            ProbeOutcome.load(path.parent)
    (tmp_path / "outcome" / "scores.npz").write_bytes(b"PK")
    with pytest.raises(SubstyleError, match="cannot read probe results"):
        ProbeOutcome.load(tmp_path / "outcome")
    with pytest.raises(SubstyleError, match="cannot read probe results"):
        ProbeOutcome.load(tmp_path / "nowhere")


def test_without_classes(make_table: Make, quick: Quick) -> None:
    results = plain(run_probes(make_table(classes=0), quick(heads=("linear",)), out_dir=None, quiet=True))
    assert results["class"] is None
    assert results["multitask"] is None
    assert results["transformation"]["linear"]["accuracy"]["value"] > 0.8


def test_a_suite_without_held_out_transformations(make_table: Make, quick: Quick) -> None:
    suite = (("identity", "identity", "train"), ("blur_a", "blur", "train"), ("noise_a", "noise", "train"))
    config = quick(heads=("linear",), tasks=("kind",))
    results = plain(run_probes(make_table(suite=suite), config, out_dir=None, quiet=True))
    kind = results["kind"]["linear"]
    assert kind["held_out"] is kind["gap"] is None
    assert kind["seen"]["value"] > 0.8
    assert set(results) == {"kind"}, "every class has but one: none can be held out"


def test_a_suite_of_identity_alone(make_table: Make, quick: Quick) -> None:
    table = make_table(suite=(("identity", "identity", "train"),))
    results = plain(run_probes(table, quick(heads=("linear",)), out_dir=None, quiet=True))
    assert results["transformation"] is results["kind"] is results["multitask"] is None
    assert results["class"]["linear"]["original"]["value"] > 0.9
    assert results["class"]["linear"]["transformed"] is None


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
    counts = np.array(transformation["confusion"]["counts"]).sum(1)
    test = table.rows(2)
    assert counts[6] == 0
    assert counts[2] == distinct[2, test].sum()
    assert np.isnan(outcome.scores["transformation/linear"][~distinct[:, test]]).all()


@pytest.mark.parametrize("width", slow_after(1, [1, 7, 13]))
def test_any_width_and_few_images(make_table: Make, quick: Quick, width: int) -> None:
    table = make_table(images=10, width=width, classes=2)
    results = plain(
        run_probes(table, quick(precision="bf16", mlp_steps=5, multitask_steps=5), out_dir=None, quiet=True)
    )
    assert 0.0 <= results["transformation"]["mlp"]["accuracy"]["value"] <= 1.0


def test_embeddings_that_are_not_finite_are_refused(make_table: Make, quick: Quick) -> None:
    table = make_table()
    table.x_TND[2, table.rows(0)[3], 4] = np.nan
    with pytest.raises(SubstyleError, match="NaN or infinite"):
        run_probes(table, quick(), out_dir=None, quiet=True)


def test_precisions_are_equally_accurate(make_table: Make, quick: Quick) -> None:
    table = make_table(images=200, style=0.4)
    accuracy = {}
    for precision in ("fp32", "bf16"):
        config = quick(tasks=("transformation",), precision=precision, equal_width=0)
        accuracy[precision] = plain(run_probes(table, config, out_dir=None, quiet=True))["transformation"]
    for head in ("linear", "mlp"):
        full, half = (accuracy[precision][head]["accuracy"]["value"] for precision in ("fp32", "bf16"))
        assert full > 0.3
        assert half == pytest.approx(full, abs=0.04)


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


def test_comparisons(make_table: Make, quick: Quick) -> None:
    """A backbone with style signal, one without, and one with fewer images and transformations."""
    config = quick(mlp_steps=10, multitask_steps=5)
    outcomes = {
        "clear": run_probes(make_table(images=200, style=2.0), config, out_dir=None, quiet=True),
        "faint": run_probes(make_table(images=200, style=0.2), config, out_dir=None, quiet=True),
    }
    rows = compare_outcomes(outcomes)
    json.dumps(rows, allow_nan=False)
    named = {(r["task"], r["metric"], r["head"], r["a"], r["b"]): r for r in rows}
    of_tasks = 2 * (1 + 2 + 2)  # fine, coarse seen and held out, class clean and transformed, of both heads
    # multi-task; rotation, plain and by class; equal fine and rotation; MLP - linear
    assert len(named) == len(rows) == of_tasks + 2 + 2 + 3 + 2
    assert named["rotation", "accuracy", "linear", "clear", "faint"]["difference"]["value"] == pytest.approx(
        np.subtract(*(o.results["kind_rotation"]["linear"]["accuracy"]["value"] for o in outcomes.values()))
    )
    for row in rows:
        resampled = row["task"] not in ("multitask", "rotation", "equal_rotation") and row["head"] == "linear"
        assert ("se_training" in row["difference"]) is resampled
    transformation = named["transformation", "accuracy", "linear", "clear", "faint"]["difference"]
    accuracy = [outcomes[name].results["transformation"]["linear"]["accuracy"]["value"] for name in ("clear", "faint")]
    assert transformation["value"] == pytest.approx(accuracy[0] - accuracy[1])
    assert transformation["low"] > 0.1
    assert holds(transformation)
    own = named["transformation", "accuracy", "mlp-linear", "faint", "faint"]
    mlp, linear = (outcomes["faint"].results["transformation"][head]["accuracy"]["value"] for head in ("mlp", "linear"))
    assert own["difference"]["value"] == pytest.approx(mlp - linear)
    held_out = named["kind", "held_out", "linear", "clear", "faint"]
    expected = [o.results["kind"]["linear"]["held_out"]["value"] for o in outcomes.values()]
    assert held_out["difference"]["value"] == pytest.approx(expected[0] - expected[1])


def test_comparisons_match_images_and_transformations_by_name() -> None:
    rng = np.random.default_rng(0)
    score = (rng.random((3, 40)) < 0.5).astype(np.float32)
    names = ("identity", "blur_a", "noise_a")

    def outcome(rows: list[int], images: list[int]) -> ProbeOutcome:
        return ProbeOutcome(
            {},
            {"transformation/linear": score[np.ix_(rows, images)]},
            tuple(f"k{n}" for n in images),
            tuple(names[t] for t in rows),
            tuple(names[t].split("_")[0] for t in rows),
            ("train",) * len(rows),
            200,
        )

    whole = outcome([0, 1, 2], list(range(40)))
    part = outcome([2, 0], list(range(39, 10, -1)))
    (row,) = compare_outcomes({"whole": whole, "part": part})
    assert row["difference"]["value"] == 0.0
    assert row["difference"]["low"] == pytest.approx(-row["difference"]["high"])
    assert compare_outcomes({"whole": outcome([0, 1], [1, 2]), "other": outcome([0, 1], [3, 4])}) == []


def test_comparing_with_oneself_alone(make_table: Make, quick: Quick) -> None:
    outcome = run_probes(make_table(), quick(tasks=("transformation",), heads=("linear",)), out_dir=None, quiet=True)
    assert compare_outcomes({"one": outcome}) == []
