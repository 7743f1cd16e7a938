"""What a finished stage is known by."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from substyle.engine import stages
from substyle.engine.probes.config import ProbeConfig
from substyle.engine.store.embeddings import EmbeddingStore


def test_another_gpu_trains_no_probes_again_and_another_kind_of_device_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known: list[Any] = []
    entry = SimpleNamespace(name="control:pixels", slug="pixels")
    monkeypatch.setattr(stages, "chosen", lambda store, names: [entry])
    monkeypatch.setattr(stages, "_stamp", lambda store, entry, config: known.append(config))
    monkeypatch.setattr(stages, "_complete", lambda folder, stamp: True)
    monkeypatch.setattr(stages.ProbeOutcome, "load", lambda folder: None)
    for device in ("cuda:0", "cuda:1", "cpu", "auto"):
        stages.probe(cast(EmbeddingStore, None), tmp_path, ProbeConfig(device=device))
    first, second, cpu, auto = known
    assert first == second
    assert [config["device"] for config in (first, cpu, auto)] == ["cuda", "cpu", "auto"]
