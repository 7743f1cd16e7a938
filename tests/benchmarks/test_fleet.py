"""The simulated fleet: whatever dies, every shard is committed once, and what is counted adds up."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from benchmarks.fleet import Fleet, Model

from substyle.engine.store import compaction, journal
from substyle.pipelines.storage import place

NAMES = ("identity", "jpeg")


@pytest.mark.parametrize("restarts", [(), (0.2, 0.5, 0.6)])
@pytest.mark.parametrize("life", [3.0, 1e9])
def test_everything_is_committed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: tuple[float, ...], life: float
) -> None:
    monkeypatch.setattr(compaction, "RECORDS", 64)
    monkeypatch.setattr(compaction, "LOOK_RECORDS", 8)
    model = Model(
        8, 1.0, 0.1, slow=0.3, life=life, noticed=1.0, rest=5.0, late=0.5, late_seconds=10.0, restarts=restarts
    )
    fleet = Fleet(tmp_path, model, images=999, rows=2, names=NAMES)
    outcome = fleet.run()
    index = journal.read_index(place(tmp_path))
    assert sorted(index.shard_R.tolist()) == list(range(500))
    assert index.finished(fleet.backbone, NAMES, 500).all()
    assert len(outcome.plans) == len(restarts) + 2
    assert (outcome.deaths > 0) == (life < 1e9)
    assert (outcome.wasted > 0) == (life < 1e9 or bool(restarts))
    assert 0 < outcome.busy <= outcome.seconds
    assert outcome.useful + outcome.wasted <= 8 * outcome.seconds
    assert outcome.useful >= 500 * np.exp(-0.5)
    assert outcome.calls["creates"] > 500
    assert outcome.calls["flushes"] >= 2 * 500
    assert len(journal.files(place(tmp_path)).tables) > 1 + len(restarts)
    assert not journal.has_loose(place(tmp_path))


def test_flushing_is_as_before_afterwards(tmp_path: Path) -> None:
    before = os.fsync
    Fleet(tmp_path, Model(2, 1.0, 0.1, restarts=()), images=4, rows=2, names=NAMES).run()
    assert os.fsync is before
