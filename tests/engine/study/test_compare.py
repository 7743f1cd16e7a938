from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.engine.report.real import BACKBONE, NAMES, estimate, real_results, shortened

from substyle.engine.probes.outcomes import ProbeOutcome
from substyle.engine.report.page import soft
from substyle.engine.study.compare import compare_results


def outcome(score: float, *names: str) -> dict[str, ProbeOutcome]:
    """Outcomes of a transformation probe that is right on a share of 200 photographs."""
    right_N = np.arange(200) < 200 * score
    scores = {"transformation/linear": np.tile(right_N, (len(names), 1)).astype(np.float32)}
    keys = tuple(map(str, range(200)))
    none = tuple("" for _ in names)
    return {BACKBONE: ProbeOutcome({}, scores, keys, names, none, none)}


@pytest.mark.parametrize("change", ["", "suite", "photographs", "unknown", "convergence", "outcomes"])
def test_clear_is_a_paired_interval_without_zero_of_the_same_task(tmp_path: Path, change: str) -> None:
    runs = [(name, real_results()) for name in ("a", "b", "c")]
    for (_, results), accuracy in zip(runs, (0.80, 0.85, 0.801), strict=True):
        scores = results["backbones"][BACKBONE]["transformation"]["linear"]
        scores["accuracy"] = estimate(accuracy, accuracy - 0.01, accuracy + 0.01)
    _, second = runs[1]
    if change == "suite":
        second["transformations"] = second["transformations"][:6]
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
    columns = list(pd.read_csv(tmp_path / "tables" / "compare.csv"))
    ends = [f"{name}{end}" for name in ("a", "b", "c") for end in ("", "_low", "_high")]
    differences = [f"{name}_minus_a{end}" for name in ("b", "c") for end in ("", "_low", "_high")]
    assert columns == ["backbone", "score", *ends, *differences]


def test_every_difference_of_setup_is_flagged(tmp_path: Path) -> None:
    first = real_results()
    other = shortened(real_results(), 8) | {"suite": "custom", "images": 200, "seed": 1, "canvas": 128, "crop_pct": 1.0}
    other |= {"classes": ["x", "y"], "splits": {"train": 120, "val": 40, "test": 40}}
    other["backbones"][BACKBONE]["spec"]["weights_hash"] = "ffff"
    setup = compare_results([("a", first), ("b", other)], tmp_path).setup
    expected = ["suite", "transformations", "images", "seed", "canvas", "crop_pct", "classes", "splits", "indistinct"]
    assert [difference.what for difference in setup] == [*expected, BACKBONE]
    assert setup[1].values[0] == "33"
    assert setup[1].values[1].startswith("8 (without hue_shift")
    page = (tmp_path / "compare.html").read_text()
    assert all(soft(difference.what) in page for difference in setup)
    assert "The runs agree" not in page


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
