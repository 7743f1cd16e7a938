"""Forecasts against the kept studies."""

from __future__ import annotations

import json
from typing import Any

import pytest
from benchmarks.forecast import RESULTS, checked, deviations, kept, over_generators, widths

from substyle.engine.estimate.forecast import GENERATORS, HEADS, STYLE


def test_deviations_are_those_of_the_kept_studies() -> None:
    studies = kept()
    for known, head in ((STYLE, "linear"), (HEADS, "mlp-linear")):
        found = deviations(widths(studies, head))
        assert known.transformation == pytest.approx(found.transformation, abs=6e-4)
        assert known.photograph == pytest.approx(found.photograph, abs=6e-4)
    styles = over_generators(studies)
    assert GENERATORS.generator == pytest.approx(styles.generator, abs=6e-4)
    assert GENERATORS.photograph == pytest.approx(styles.photograph, abs=6e-4)
    saved: dict[str, Any] = json.loads((RESULTS / "forecast.json").read_text())
    assert [row["inside"] for row in saved["checked"]["style"]] == [row["inside"] for row in checked(studies, "linear")]
