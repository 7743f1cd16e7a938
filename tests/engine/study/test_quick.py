"""Settings of probes that take most of their time."""

from __future__ import annotations

import dataclasses

import numpy as np

from substyle.engine.embedding.preflight import SplitCounts
from substyle.engine.study.file import load_study
from substyle.engine.study.quick import costly

COUNTS = SplitCounts(("a", "b", "c"), np.array([[60, 20, 20]] * 3 + [[0, 0, 0]]), given=False)


def named(**changes: object) -> list[str]:
    study = load_study("demo")
    study = dataclasses.replace(study, probes=dataclasses.replace(study.probes, **changes))
    return [line.partition(" ")[0] for line in costly(study, COUNTS)]


def test_settings_that_take_most_of_the_time_are_named() -> None:
    assert named() == []
    assert named(widths=(4096,)) == ["probes.widths"]
    assert named(mlp_steps=20_000) == ["probes.mlp_steps"]
    assert named(heads=("linear",), tasks=("kind",), redraws=1000) == ["probes.redraws", "probes.rotate"]
