"""The grid of probe sizes, selection and Pareto front."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from tests.engine.probes.conftest import Make, Quick
from torch import nn

from substyle.engine.extensions.extractability.complexity import LINEAR, selected
from substyle.engine.extensions.extractability.config import ComplexityConfig
from substyle.engine.extensions.extractability.stage import complexity
from substyle.engine.probes.run import run_probes

pytestmark = pytest.mark.usefixtures("one_thread")
TWO = ("transformation", "class")


def mlp(inputs: int, depth: int, width: int, outputs: int) -> int:
    """Parameters of torch's MLP."""
    sizes = [inputs, *[width] * depth, outputs]
    layers = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))
    return sum(p.numel() for p in layers.parameters())


def test_depth_0_is_the_linear_probe_and_depth_1_the_mlp(make_table: Make, quick: Quick) -> None:
    """Equal numbers for equal architectures; parameters are those of torch's modules."""
    table = make_table(images=200, style=1.0)
    probes, config = quick(tasks=TWO), ComplexityConfig(depths=(0, 1, 3), widths=(8, 32))
    results = run_probes(table, probes, out_dir=None, quiet=True).results
    rows = json.loads(json.dumps(complexity(table, probes, config), allow_nan=False))
    assert list(rows) == [LINEAR, "1x8", "1x32", "3x8", "3x32"]
    for name, head in ((LINEAR, "linear"), ("1x32", "mlp")):
        for end in ("value", "low", "high"):
            assert rows[name]["transformation"][end] == results["transformation"][head]["accuracy"][end]
        assert rows[name]["class"]["value"] == results["class"][head]["original"]["value"]
        transformed = results["class"][head]["transformed"]["value"]
        assert rows[name]["transformed"]["value"] == pytest.approx(transformed)
        assert rows[name]["transformation_converged"] == results["transformation"][head]["converged"]
    for name, row in rows.items():
        assert row["transformation_parameters"] == mlp(20, row["depth"], row["width"] or 0, 8)
        assert row["class_parameters"] == mlp(20, row["depth"], row["width"] or 0, 3)
        assert ("transformation_difference" in row) == (name != LINEAR)
        if name != LINEAR:
            apart = row["transformation"]["value"] - rows[LINEAR]["transformation"]["value"]
            assert row["transformation_difference"]["value"] == pytest.approx(apart, abs=1e-6)
            assert row["transformation"]["value"] > 0.25  # twice chance
    for task in ("transformation", "class", "both"):
        assert sum(task in row["selected"] for row in rows.values()) <= 1


def test_validation_selects_the_smallest_of_the_best() -> None:
    rows = {
        name: {"transformation_validation": transformation, "class_validation": class_,
               "transformation_parameters": size, "class_parameters": size}
        for name, transformation, class_, size in (("a", 0.9, 0.2, 9), ("b", 0.9, 0.1, 5), ("c", 0.1, 0.9, 7))
    }  # fmt: skip
    assert selected(rows, list(rows), ["transformation"]) == "b"
    assert selected(rows, list(rows), ["class"]) == "c"
    assert selected(rows, list(rows), ["transformation", "class"]) == "a"
    assert selected(rows, ["b"], ["class"]) == "b"
