import base64
import io
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.engine.report.real import BACKBONE, NAMES, estimate, real_results, with_heads

from substyle.engine.extensions.claims import claims
from substyle.engine.report import curves, heat_tables, tables
from substyle.engine.report.data import show_scored
from substyle.engine.report.figures import draw_matrix, draw_plots
from substyle.engine.report.section import Panel, Plots
from substyle.engine.results.model import Confusion
from substyle.engine.stages.probes.section import comparisons_between, confusion_shares, matrices, worst_confusions
from substyle.engine.stages.results import validate_results
from substyle.engine.study.report import write_report


def test_confusion_shares_rows_and_worst() -> None:
    share_CC = confusion_shares(Confusion(labels=["a", "b", "c"], counts=[[6, 4, 0], [0, 10, 0], [1, 0, 0]]))
    assert share_CC.tolist() == [[0.6, 0.4, 0], [0, 1, 0], [1, 0, 0]]
    assert worst_confusions("abc", share_CC) == [("c", "a", 1.0), ("a", "b", 0.4)]
    share_CC = confusion_shares(Confusion(labels=["a", "b"], counts=[[0, 0], [0, 5]]))
    assert share_CC.tolist() == [[0, 0], [0, 1]]
    assert worst_confusions("ab", share_CC) == []


@pytest.mark.parametrize("confusion", [None, Confusion(labels=[], counts=[])])
def test_no_confusion_no_plot(confusion: Confusion | None) -> None:
    results = validate_results(with_heads(real_results("alpha"), "linear"))
    assert [block.panels[0].name for block in matrices(results, "transformation")] == ["alpha, linear"]
    probe = results.probe("alpha", "transformation", "linear")
    assert probe is not None
    probe.confusion = confusion
    assert matrices(results, "transformation") == []


def test_a_matrix_is_drawn_as_opacity(tmp_path: Path) -> None:
    value_CC = np.array([[0.0, 0.5], [1.0, 0.25]])
    draw = partial(draw_matrix, names=["a", "b"], value_CC=value_CC, cells=[["w", "x"], ["y", "z"]])
    block = Plots("", (Panel("m", draw),))
    ((picture,),) = draw_plots([block], tmp_path)[0].values()
    assert re.findall("<text.*?>(.*?)</text>", picture.svg) == ["a", "b", "a", "b", "w", "x", "y", "z"]
    (data,) = re.findall('href="data:image/png;base64,([^"]*)"', picture.svg)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))
    assert pixels[..., 3] == pytest.approx(255 * value_CC, abs=1.5)
    assert pixels[1, 0, :3].tolist() == [31, 111, 181]


def test_heat_tables_group_and_colour() -> None:
    results = real_results()
    (head, table), _ = heat_tables.accuracies(validate_results(results), "transformation")
    assert head == "linear"
    assert [kind for kind, _ in table.groups][:3] == ["identity", "blur", "noise"]
    assert [name for name, _ in table.groups[1][1]] == ["gaussian_blur", "motion_blur", "defocus_blur", "zoom_blur"]
    accuracy = results["backbones"][BACKBONE]["transformation"]["linear"]["by_transformation"]["zoom_blur"]
    cell = table.groups[1][1][3][1][0]
    assert (cell.text, cell.heat) == (f"{100 * accuracy:.1f}", accuracy)
    assert [heading for heading, _ in table.footer] == ["All", "Chance"]


def test_heat_is_kept_within_its_scale() -> None:
    results = real_results("alpha")
    results["backbones"]["alpha"]["steerability"] |= {"jpeg": -3.5, "swirl": None}
    table = heat_tables.geometry_tables(validate_results(results))[2][2]
    cells = {name: row[0] for _, rows in table.groups for name, row in rows}
    assert cells["jpeg"].text == "−3.500"
    assert cells["jpeg"].heat == 0.0
    assert "swirl" not in cells  # no backbone has a number


def test_held_out_tables_hold_held_out_transformations_only() -> None:
    results = real_results()
    roles = {row["name"]: row["role"] for row in results["transformations"]}
    for role in ("held_out", "train"):
        table = heat_tables.accuracies(validate_results(results), "kind", role=role)[0][1]
        shown = [name for _, rows in table.groups for name, _ in rows]
        assert shown == [name for name in roles if roles[name] == role]


def test_comparisons_between_backbones_only() -> None:
    results = real_results()
    shown = comparisons_between(tables.comparisons(validate_results(results)), list(NAMES[:2]), "mlp")
    assert {row[0] for row in shown.rows} == {"transformation", "kind", "class", "multitask"}
    assert len(shown.rows) == 7  # metrics
    assert {row[2] for row in shown.rows} == {"mlp"}


def test_rotation_tables_have_all_and_chance() -> None:
    results = real_results("alpha")
    scores = {
        "by_transformation": {"jpeg": {"accuracy": estimate(0.4)}},
        "accuracy": estimate(0.41, 0.3, 0.5) | {"one_way": [0.4, 0.42]},
    }
    results["backbones"]["alpha"]["kind_rotation"] = {"linear": scores}
    ((head, table),) = heat_tables.accuracies(validate_results(results), "kind_rotation")
    assert head == "linear"
    assert table.groups == (("quality", (("jpeg", (heat_tables.Cell("40.0", "", 0.4),)),)),)
    assert [(heading, cells[0].text, cells[0].small) for heading, cells in table.footer] == [
        ("All", "41.0", "30.0–50.0"),
        ("Chance", "10.0", ""),
    ]


def layered() -> dict[str, Any]:
    """Results of a network's own output, of four of its layers, and of two layers of another."""
    names = {f"m@layer={i},pool=avg": i for i in (3, 0, 2, 1)} | {f"other@pool=max,layer={i}": i for i in (0, 1)}
    results = real_results("m", *names)
    for name, layer in names.items():
        backbone = results["backbones"][name]
        backbone["spec"]["pooling"] = f"avg, block {layer} of 0 to 5"
        backbone["transformation"]["linear"]["accuracy"] = estimate(*(each + 0.1 * layer for each in (0.5, 0.4, 0.6)))
    return results


def test_depth_plots_have_the_layers_in_order() -> None:
    results = layered()
    (plot,) = curves.depth_plots(validate_results(results))  # two layers are no curve
    assert (plot.name, plot.last) == ("m@pool=avg", 5)
    assert [curve.label for curve in plot.curves] == ["transformation", "held out", "class", "class, transformed"]
    for curve, (task, key) in zip(
        plot.curves,
        [("transformation", "accuracy"), ("kind", "held_out"), ("class", "original"), ("class", "transformed")],
        strict=True,
    ):
        assert [layer for layer, *_ in curve.points] == [0, 1, 2, 3]
        expected = [results["backbones"][f"m@layer={i},pool=avg"][task]["linear"][key]["value"] for i in range(4)]
        assert [value for _, value, _, _ in curve.points] == expected
        assert all(low is not None and low <= value <= high for _, value, low, high in curve.points)
    assert f"transformation at layer 3 ({100 * plot.curves[0].points[3][1]:.1f} %" in plot.summary


def test_a_best_layer_names_those_within_its_interval() -> None:
    points = ((0, 0.5, 0.4, 0.6), (1, 0.78, 0.7, 0.85), (2, 0.8, 0.75, 0.9), (3, 0.74, 0.7, 0.8))
    whole, one = (curves.Curve("transformation", "full", False, each) for each in (points, points[:1]))
    assert curves.highest(whole) == "transformation at layer 2 (80.0 %; within its interval: 1)"
    assert curves.highest(one) == "transformation at layer 0 (50.0 %)"


def test_a_layer_whose_probe_has_not_converged_is_not_the_best() -> None:
    results = layered()
    results["backbones"]["m@layer=3,pool=avg"]["transformation"]["linear"]["converged"] = False
    (plot,) = curves.depth_plots(validate_results(results))
    assert len(plot.curves[0].points) == 4  # drawn all the same
    assert "transformation at layer 2 (" in plot.summary
    assert "not converged: 3)" in plot.summary
    for name in results["backbones"]:
        results["backbones"][name]["transformation"]["linear"]["converged"] = False
    assert "transformation unknown (no probe has converged)" in curves.depth_plots(validate_results(results))[0].summary


def test_layers_of_networks_are_not_compared_in_claims() -> None:
    results = layered()
    for name in results["backbones"]:
        results["backbones"][name]["spec"]["objective"] = "masked"
    assert claims.claims(validate_results(results))[0].groups == {"masked": ["m"], "others": []}
    del results["backbones"]["m"]
    assert "layers are not compared" in (claims.claims(validate_results(results))[0].reasons or [""])[0]


@pytest.mark.slow
@pytest.mark.usefixtures("figures")
def test_depth_is_drawn_on_the_page_and_as_a_figure(tmp_path: Path) -> None:
    results = layered()
    files = write_report(validate_results(results), tmp_path)
    assert {path.name for path in files.figures} >= {"depth.pdf", "depth.png"}
    html = files.html.read_text()
    (plot,) = curves.depth_plots(validate_results(results))
    for curve in plot.curves:
        assert f"<title>{curve.label}: layer 0 {show_scored(curve.points[0][1:])}, layer 1 " in html
