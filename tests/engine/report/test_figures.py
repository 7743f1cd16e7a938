from typing import Any

from tests.engine.report.real import estimate, real_results

from substyle.engine.report import curves
from substyle.engine.stages.results import validate_results


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
