"""Stamps of finished stages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import jpeg, photograph
from tests.staged import run_of

from substyle.engine.config import AnalysisConfig
from substyle.engine.stages import stamp
from substyle.engine.stages.execution import computed, kept
from substyle.engine.stages.stage import JSON, JsonStage, Run, Unit
from substyle.engine.stages.stamp import StaleError
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.study.api import embed


@dataclass(frozen=True)
class ToyConfig:
    """Settings of the toy stage."""

    value: int = 1


class Toy(JsonStage[ToyConfig]):
    """A stage that counts what it computes, of inputs that tests change."""

    name = "toy"
    config = ToyConfig
    file = "toy.json"

    def __init__(self) -> None:
        self.computed_units: list[str] = []
        self.input, self.complete = 0, True
        self.meanwhile: Callable[[], None] = lambda: None

    def inputs(self, run: Run, config: ToyConfig, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
        return {"input": self.input}

    def compute(self, run: Run, config: ToyConfig, unit: Unit, folder: Path) -> bool:
        self.computed_units.append(unit.name)
        self.write(folder, {"value": config.value, "input": self.input})
        self.meanwhile()
        return self.complete


BOTH = ["control:pixels", "control:statistics"]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """A store of two backbones."""
    root = tmp_path_factory.mktemp("embedded")
    for i in range(12):
        path = root / "photographs" / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photograph(i)))
    options: dict[str, Any] = {"transformations": "identity,jpeg", "canvas": 64}
    return embed(root / "photographs", root / "s.zarr", BOTH, **options)


def toy(store: EmbeddingStore, out: Path, value: int | None = 1) -> Run:
    return run_of(store, out, **({} if value is None else {"toy": ToyConfig(value)}))


def test_a_note_of_another_version_is_outdated(tmp_path: Path) -> None:
    note = {"stamp": {"other": 1}, "seconds": 0.0, "files": {}}
    (tmp_path / stamp.NOTE).write_text(json.dumps(note | {"checksum": stamp.checksum(note)}))
    with pytest.raises(StaleError, match="another version"):
        stamp.note_of(tmp_path)


def test_a_note_with_settings_that_no_version_has_is_outdated(embedded: EmbeddingStore, tmp_path: Path) -> None:
    class Strict(Toy):
        config = AnalysisConfig  # type: ignore[assignment]

        def inputs(self, run: Run, config: object, unit: Unit, before: Mapping[str, Any] | None = None) -> JSON:
            return {"ks": [0]}

    run = run_of(embedded, tmp_path, toy=AnalysisConfig())
    stage = Strict()
    stage.compute = lambda run, config, unit, folder: stage.write(folder, {}) is None  # type: ignore[method-assign]
    computed(stage, run)
    with pytest.raises(StaleError, match="another version"):
        kept(stage, run_of(embedded, tmp_path))


def test_units_share_what_they_read_once_for_each_computation(embedded: EmbeddingStore, tmp_path: Path) -> None:
    run = toy(embedded, tmp_path)
    assert run.once(("toy", 1), lambda: 1) == run.once(("toy", 1), lambda: 2) == 1
    assert run.once("other", lambda: 1) == 1
    computed(Toy(), run)
    assert run.once(("toy", 1), lambda: 3) == 3
    assert run.once("other", lambda: 3) == 1
    assert [unit.name for unit in run.outdated] == BOTH
