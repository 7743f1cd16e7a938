"""Stamps of finished stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.staged import probe

from substyle.engine.config import EmbedConfig
from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.engine.stages import stamp
from substyle.engine.store.table import open_tables
from substyle.engine.study.api import embed


@pytest.mark.slow
def test_controls_have_no_multitask_probe(two_classes: Path, tmp_path: Path) -> None:
    expert = ExpertConfig(passes=20, equal_width=0, doublings=1)
    small: dict[str, Any] = {"multitask_steps": 2, "widths": (8,), "bootstrap": 100, "expert": expert}
    config = ProbeConfig(tasks=("class", "multitask"), heads=("linear",), Cs=(1e-2,), resamples=0, **small)
    backbones = ["control:pixels", "control:random:test_vit"]
    settings = EmbedConfig(batch=4, threads=1, precision="fp32")
    images: dict[str, Any] = {"transformations": "identity,jpeg", "canvas": 64}
    store = embed(two_classes, tmp_path / "s.zarr", backbones, config=settings, **images)
    outcomes = probe(store, tmp_path, config)
    assert [set(outcomes[name].results) for name in backbones] == [{"class"}, {"class"}]
    alone = ProbeConfig(tasks=("multitask",), **small)
    outcomes = probe(store, tmp_path / "a", alone)
    assert [outcomes[name].results for name in backbones] == [{}, {}]
    entry = store.backbone(backbones[1])
    entry.facts["spec"]["control"] = False
    outcomes = probe(store, tmp_path / "trained", config, open_tables(store, backbones)[1:])
    assert set(outcomes[backbones[1]].results) == {"class", "multitask"}
    assert outcomes[backbones[1]].results["multitask"] is not None


def test_results_that_fail_leave_the_earlier_ones(tmp_path: Path) -> None:
    folder = tmp_path / "probes" / "x"
    with stamp.replacing(folder) as new:
        (new / "before").touch()
    with pytest.raises(ZeroDivisionError), stamp.replacing(folder) as new:
        (new / "after").write_text(str(1 / len(list(new.iterdir()))))
    assert [path.name for path in folder.iterdir()] == ["before"]
    assert list(folder.parent.iterdir()) == [folder]
