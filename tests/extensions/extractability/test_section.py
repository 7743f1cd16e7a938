"""Extractability and complexity in tables, on the page and in figures."""

from __future__ import annotations

from typing import Any

import pytest
from tests.engine.report.real import real_results

from substyle.engine.extensions.extractability.complexity_section import Size, complexity_summary
from substyle.engine.results.model import entry_of
from substyle.engine.stages.results import validate_results


def sized(style: float, substance: float, parameters: int, **changes: object) -> dict[str, Any]:
    row: dict[str, Any] = {"depth": 1, "width": 64, "selected": [], "front": False}
    for task, value in (("transformation", style), ("class", substance), ("transformed", substance / 2)):
        row |= {task: entry_of(value, (value - 0.02, value + 0.02))}
        row |= {f"{task}_difference": entry_of(value - 0.8, (value - 0.81, value - 0.79))}
    for task in ("transformation", "class"):
        row |= {f"{task}_parameters": parameters, f"{task}_validation": 0.8, f"{task}_converged": True}
    return row | changes


def read(bits: float, **changes: object) -> dict[str, Any]:
    own: dict[str, Any] = {"memorised": {"value": 0.25}, "converged": True, "photographs": 300}
    numbers = {"task": 0.9, "control": 0.3, "selectivity": 0.6}
    own |= {key: entry_of(value, (value - 0.05, value + 0.05)) for key, value in numbers.items()}
    code = {"bits": entry_of(bits, (bits - 0.1, bits + 0.1)), "uniform": 4.954}
    curve: dict[str, Any] = {"needed": entry_of(93.4, (71.8, 119.2)), "converged": True}
    points = {size: {"accuracy": entry_of(0.4, (0.3, 0.5)), "C": 0.1} for size in ("1", "2", "390")}
    shuffled = {"accuracy": 0.04, "expected": 0.03, "range95": [0.02, 0.05], "at_chance": True, "converged": True}
    code |= {"compression": entry_of(5 / bits, (5 / bits - 1, 5 / bits + 1)), "converged": True}
    entry: dict[str, Any] = {"selectivity": own, "codelength": code, "curve": curve | {"points": points}}
    return entry | {"shuffled": shuffled} | changes


@pytest.fixture
def results() -> dict[str, Any]:
    made: dict[str, Any] = real_results("alpha", "beta", "control:pixels")
    for bits, backbone in zip((0.8, 0.5, 2.5), made["backbones"].values(), strict=True):
        backbone["extractability"] = {
            "transformation": {"linear": read(bits), "mlp": {"selectivity": read(1.0)["selectivity"]}},
            "class": {"linear": read(1.3 - bits / 10)},
        }
        backbone["complexity"] = {
            "linear": sized(0.8, 0.8, 1000, depth=0, width=None, front=True, selected=["class"]),
            "1x64": sized(0.85, 0.7, 64_000, front=True, selected=["transformation", "both"]),
            "2x64": sized(0.84, 0.6, 70_000),
            "4x64": sized(0.2, 0.3, 80_000, transformation_converged=False),
        }
    validate_results(made)
    return made


def test_the_sentence_on_complexity_follows_the_numbers(results: dict[str, Any]) -> None:
    rows = validate_results(results).backbones["alpha"].entry("complexity")
    text = complexity_summary({name: row for name, row in rows.items() if row})
    assert "Transformation: validation selects 1×64, 64,000 parameters, 85.0% on test photographs, +5.0 points" in text
    assert "(+4.0 to +6.0)" in text
    assert "Class: validation selects linear, 1,000 parameters, 80.0% on test photographs." in text
    assert "On the Pareto front of test accuracies: linear, 1×64." in text
    assert "1 of 4 probes have not converged" in text
    unconverged = Size.model_validate(sized(0.1, 0.1, 10, transformation_converged=False, class_converged=False))
    late = dict.fromkeys(("1x8", "1x16"), unconverged)
    assert "Transformation: no probe has converged." in complexity_summary(late)
    assert "front" not in complexity_summary(late).split("2 of 2")[0]
