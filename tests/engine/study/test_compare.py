import csv
from pathlib import Path

import numpy as np
import pytest
from tests.engine.report.real import BACKBONE, NAMES, all_converged, estimate, real_results, shortened, with_backbones

from substyle.engine.probes.outcomes import ProbeOutcome
from substyle.engine.report.data import show
from substyle.engine.report.page import soft
from substyle.engine.study.compare import compare_results
from substyle.errors import ConfigError, SubstyleError


def outcome(score: float, *names: str) -> dict[str, ProbeOutcome]:
    """Outcomes of a transformation probe that is right on a share of 200 photographs."""
    right_N = np.arange(200) < 200 * score
    scores = {"transformation/linear": np.tile(right_N, (len(names), 1)).astype(np.float32)}
    keys = tuple(map(str, range(200)))
    none = tuple("" for _ in names)
    return {BACKBONE: ProbeOutcome({}, scores, keys, names, none, none)}


def test_equal_runs_agree_in_setup_and_do_not_differ(tmp_path: Path) -> None:
    results = real_results()
    comparison = compare_results([("a", results), ("b", results)], tmp_path)
    assert comparison.setup == ()
    assert {row[-1] for row in comparison.table.rows} == {(0.0, None, None)}
    assert "The runs agree" in (tmp_path / "compare.html").read_text()


@pytest.mark.parametrize("change", ["", "suite", "classes", "photographs", "unknown", "convergence", "outcomes"])
def test_clear_is_a_paired_interval_without_zero_of_the_same_task(tmp_path: Path, change: str) -> None:
    runs = [(name, real_results()) for name in ("a", "b", "c")]
    for (_, results), accuracy in zip(runs, (0.80, 0.85, 0.801), strict=True):
        scores = results["backbones"][BACKBONE]["transformation"]["linear"]
        scores["accuracy"] = estimate(accuracy, accuracy - 0.01, accuracy + 0.01)
    _, second = runs[1]
    if change == "suite":
        second["transformations"] = second["transformations"][:6]
    elif change == "classes":
        second["classes"] = second["classes"][:-1]
    elif change in ("photographs", "unknown"):
        for _, results in runs[:2]:
            results["identity"] = {"data": None if change == "unknown" else str(id(results))}
    elif change == "convergence":
        second["backbones"][BACKBONE]["transformation"]["linear"]["converged"] = False
    names = ("identity", "jpeg", "pixelate")
    kept = [outcome(0.8, *names), outcome(0.85, *names[:2]), outcome(0.8, *names)]
    comparison = compare_results(runs, tmp_path, kept if change != "outcomes" else ())
    row = next(row for row in comparison.table.rows if row[:2] == (BACKBONE, "transformation_linear"))
    assert [value[0] for value in row[2:5]] == [0.80, 0.85, 0.801]
    difference, low, high = row[5]
    assert difference == pytest.approx(0.05)
    paired = change not in ("photographs", "unknown", "outcomes")
    assert (low is not None and 0 < low < 0.05 < high) == paired
    html = (tmp_path / "compare.html").read_text()
    assert html.count("<small>clear</small>") == (change == "")
    assert comparison.text().count("*") == 2 * (change == "")
    if change == "unknown":
        assert ("photographs", ("not recorded", "not recorded", real_results()["identity"]["data"])) in [
            (each.what, each.values) for each in comparison.setup
        ]
    with (tmp_path / "tables" / "compare.csv").open(newline="") as file:
        columns = next(csv.reader(file))
    assert columns[:5] == ["backbone", "score", "a", "a_low", "a_high"]
    assert columns[-6:] == [
        "b_minus_a",
        "b_minus_a_low",
        "b_minus_a_high",
        "c_minus_a",
        "c_minus_a_low",
        "c_minus_a_high",
    ]


def test_paired_differences_are_over_common_transformations(tmp_path: Path) -> None:
    runs = [(name, real_results()) for name in ("a", "b")]
    first, second = outcome(0.8, "identity", "jpeg"), outcome(0.8, "identity")
    first[BACKBONE].scores["transformation/linear"][1] = 0.0  # jpeg, which the other run does not have
    table = compare_results(runs, tmp_path, [first, second]).table
    assert next(row[-1] for row in table.rows if row[:2] == (BACKBONE, "transformation_linear"))[0] == 0.0


def test_precision_versions_and_what_is_left_out_are_part_of_the_setup(tmp_path: Path) -> None:
    runs = [real_results() for _ in range(2)]
    for results, value in zip(runs, ("bf16", "fp32"), strict=True):
        results |= {"dtype": value, "version": value, "left_out": {value: 1}, "indistinct": {value: 1}}
        results["environment"] = {"torch": value, "threads": value}
        results["backbones"][BACKBONE]["runtime"] = {"precision": value}
    found = compare_results([("a", runs[0]), ("b", runs[1])], tmp_path).setup
    wanted = ["dtype", "left_out", "indistinct", "version", f"runtime of {BACKBONE}", "environment"]
    assert [difference.what for difference in found] == wanted
    assert found[-1].values == ("torch bf16", "torch fp32")


def test_unconverged_probes_have_a_dagger(tmp_path: Path) -> None:
    runs = [(name, all_converged(real_results())) for name in ("a", "b")]
    scores = runs[1][1]["backbones"][BACKBONE]["transformation"]["linear"]
    scores["converged"] = False
    comparison = compare_results(runs, tmp_path)
    (marked,) = [line for line in comparison.text().splitlines() if "†" in line and "transformation_linear" in line]
    assert marked.split()[2:] == [*[show(scores["accuracy"]["value"])] * 2, "†", "+0.0"]
    assert "† the probe has not converged" in comparison.text()
    assert (tmp_path / "tables" / "compare.tex").read_text().count(r"$\dagger$") == 1
    assert "†" not in compare_results([runs[0], ("c", runs[0][1])], tmp_path).text()


def test_every_difference_of_setup_is_flagged(tmp_path: Path) -> None:
    first = real_results()
    other = shortened(real_results(), 8) | {"suite": "custom", "images": 200, "seed": 1, "canvas": 128, "crop_pct": 1.0}
    other |= {"classes": ["x", "y"], "splits": {"train": 120, "val": 40, "test": 40}}
    other["backbones"][BACKBONE]["spec"]["weights_hash"] = "ffff"
    setup = compare_results([("a", first), ("b", other)], tmp_path).setup
    assert [difference.what for difference in setup] == [
        "suite",
        "transformations",
        "images",
        "seed",
        "canvas",
        "crop_pct",
        "classes",
        "splits",
        "indistinct",
        BACKBONE,
    ]
    assert setup[1].values[0] == "33"
    assert setup[1].values[1].startswith("8 (without hue_shift")
    page = (tmp_path / "compare.html").read_text()
    assert all(soft(difference.what) in page for difference in setup)
    assert "The runs agree" not in page


def test_roles_settings_and_units_are_part_of_the_setup(tmp_path: Path) -> None:
    runs = [real_results() for _ in range(2)]
    for results, by, strengths in zip(runs, ("photograph", "folder"), ([0.1, 1.0], [1e-6]), strict=True):
        results["resampled"] = {"by": by, "groups": 20}
        results["settings"] = {"probes": {"Cs": strengths, "seed": 0, "device": by, "grid": {"save": by == "folder"}}}
    name = runs[0]["transformations"][3]["name"]
    runs[1]["transformations"][3] = {**runs[1]["transformations"][3], "role": "elsewhere"}
    role = runs[0]["transformations"][3]["role"]
    found = compare_results([("a", runs[0]), ("b", runs[1])], tmp_path).setup
    assert [(difference.what, difference.values) for difference in found] == [
        ("resampled", ("by photograph, groups 20", "by folder, groups 20")),
        ("settings of probes", ('Cs [0.1, 1.0]; grid {"save": false}', 'Cs [1e-06]; grid {"save": true}')),
        (name, (f"role {role}", "role elsewhere")),
    ]
    del runs[1]["settings"]  # older results
    older = compare_results([("a", runs[0]), ("b", runs[1])], tmp_path).setup
    assert [difference.what for difference in older] == ["resampled", name]


def test_scores_of_every_stage_are_compared(tmp_path: Path) -> None:
    runs = [real_results() for _ in range(2)]
    name = NAMES[0]
    for results, value, radius in zip(runs, (0.25, 0.75), (4, 8), strict=True):
        scored, ended = {"accuracy": estimate(value)}, estimate(value, value - 0.125, value + 0.125)
        own = results["backbones"][name]
        own["shift"] = {"sketches": {"accuracy": ended}}
        own["domains"] = {"transformation": {"photos": {"photos": scored, "x-rays": {**scored, "converged": False}}}}
        attack = {"l2": 1.0, "success": ended, "detection": {"detector": {"auroc": estimate(value)}}}
        own["attack"] = {"attacks": {"pgd@8": attack}}
        results["settings"] = {"attack": {"weight": 1.0, "steps": radius}}
    compared = compare_results([("a", runs[0]), ("b", runs[1])], tmp_path)
    marks = {row[:2]: clear for row, clear in zip(compared.table.rows, compared.clear, strict=True)}
    rows = {row[1]: row[2:] for row in compared.table.rows if row[0] == name}
    assert rows["shift_sketches"] == ((0.25, 0.125, 0.375), (0.75, 0.625, 0.875), (0.5, None, None))
    assert rows["attack_pgd@8"] == rows["shift_sketches"]
    assert rows["detected_pgd@8"] == ((0.25, None, None), (0.75, None, None), (0.5, None, None))
    assert rows["transformation_accuracy_photos_x-rays"] == rows["detected_pgd@8"]
    assert "transformation_accuracy_photos_photos" not in rows  # that is the style score
    assert marks[name, "shift_sketches"] == (False,)  # nothing is kept by photograph
    assert [(each.what, each.values) for each in compared.setup] == [("settings of attack", ("steps 4", "steps 8"))]


def test_a_backbone_of_one_run_has_no_difference(tmp_path: Path) -> None:
    runs = [(name, real_results("x", "y")) for name in ("a", "b")]
    del runs[1][1]["backbones"]["x"]
    table = compare_results(runs, tmp_path).table
    assert {row[-1] for row in table.rows if row[0] == "x"} == {None}
    assert None not in {row[-1] for row in table.rows if row[0] == "y"}
    assert table.rows[0][0] == "y"  # what is common comes first


def test_names_are_escaped(tmp_path: Path) -> None:
    results = real_results("<script>x")
    compare_results([("<script>1", results), ("<script>2", results)], tmp_path)
    assert "<script" not in (tmp_path / "compare.html").read_text()


def test_runs_without_scores(tmp_path: Path) -> None:
    results = with_backbones(real_results())
    assert compare_results([("a", results), ("b", results)], tmp_path).table.rows == ()


def test_two_runs_of_different_names_are_needed(tmp_path: Path) -> None:
    results = real_results()
    for runs in ([], [("a", results)], [("a", results), ("a", results)], [("a", results), ("a_low", results)]):
        with pytest.raises(ConfigError, match=r"compare\.runs"):
            compare_results(runs, tmp_path)
    with pytest.raises(SubstyleError, match="schema"):
        compare_results([("a", results), ("b", {})], tmp_path)


def test_the_table_for_a_terminal(tmp_path: Path) -> None:
    runs = [(name, all_converged(real_results())) for name in ("a", "b")]
    for (_, results), accuracy in zip(runs, (0.80, 0.85), strict=True):
        results["backbones"][BACKBONE]["transformation"]["linear"]["accuracy"] = estimate(accuracy)
    comparison = compare_results(runs, tmp_path, [outcome(0.80, "identity"), outcome(0.85, "identity")])
    lines = comparison.text().splitlines()
    assert lines[0].split() == ["Backbone", "Score", "a", "b", "b", "−", "a"]
    assert len(lines) == len(comparison.table.rows) + 4
    changed = [line.split() for line in lines if line.startswith(BACKBONE) and " transformation_linear " in line]
    assert changed == [[BACKBONE, "transformation_linear", "80.0", "85.0", "+5.0", "*"]]
    assert sum("*" in line for line in lines[:-2]) == 1


def test_held_out_scores_have_the_two_way_interval(tmp_path: Path) -> None:
    runs = [(name, real_results()) for name in ("a", "b")]
    for (_, results), value in zip(runs, (0.50, 0.53), strict=True):
        own = results["backbones"][BACKBONE]
        one_way = {"one_way": [value - 0.01, value + 0.01]}
        own["kind"]["linear"]["held_out"] = estimate(value, 0.2, 0.8) | one_way
    values = {row[:2]: row[2:4] for row in compare_results(runs, tmp_path).table.rows}
    assert values[BACKBONE, "held_out_linear"] == ((0.50, 0.2, 0.8), (0.53, 0.2, 0.8))
    assert "<td>53.0<small>20.0–80.0</small></td>" in (tmp_path / "compare.html").read_text().replace(" †", "")
