"""Drawn parameters of all transformations, as they were. If they move, so do pixels, and stores have other variants.

``GOLDEN=write pytest tests/pipelines/transforms/test_drawn.py`` writes them again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from substyle.kernels.philox import image_keys
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import load_all

FILE = Path(__file__).with_name("drawn.json")
KEYS = image_keys(0, ["a/1.jpg", "b/2.jpg"])
FIRST = 3  # values that are kept of an array, beside its mean


def drawn() -> dict[str, dict[str, list[float]]]:
    """Mean and first values of each parameter of two photographs, by transformation."""
    load_all()
    found: dict[str, dict[str, list[float]]] = {}
    for name, transformation in sorted(base.REGISTRY.items()):
        if transformation.made_by == "library":
            continue
        each = {}
        for parameter, values in transformation.draw(KEYS, 64).items():
            numbers = np.asarray(base.feed(values), np.float64).ravel()
            each[parameter] = [float(f"{x:.6g}") for x in (numbers.mean(), *numbers[:FIRST], numbers[-1])]
        found[name] = each
    return found


def test_parameters_are_drawn_as_before() -> None:
    now = drawn()
    if os.environ.get("GOLDEN") == "write":
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(each)}" for name, each in now.items())
        FILE.write_text(f"{{\n{lines}\n}}\n")
    before = json.loads(FILE.read_text())
    assert before.keys() <= now.keys()  # other tests register some
    for name, parameters in before.items():
        assert now[name].keys() == parameters.keys(), name
        for parameter, numbers in parameters.items():
            assert now[name][parameter] == pytest.approx(numbers, rel=1e-4, abs=1e-5), f"{name}, {parameter}"
