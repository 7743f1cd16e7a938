"""Stamps of finished stages."""

from __future__ import annotations

import errno
import json
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import jpeg, photograph
from tests.staged import probe, run_of

from substyle.engine.config import AnalysisConfig, EmbedConfig
from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.engine.stages import registry, stamp
from substyle.engine.stages.analysis import STAGE as ANALYSIS
from substyle.engine.stages.execution import computed, kept, settings_of
from substyle.engine.stages.probes import STAGE as PROBES
from substyle.engine.stages.similarity import STAGE as SIMILARITY
from substyle.engine.stages.stage import JSON, JsonStage, Run, Stage, Unit
from substyle.engine.stages.stamp import StaleError
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import EmbeddingTable, open_tables
from substyle.engine.study import outputs
from substyle.engine.study.api import embed


@pytest.mark.parametrize("stage", [PROBES, ANALYSIS, SIMILARITY])
def test_another_gpu_computes_nothing_again_and_another_kind_of_device_does(stage: Stage[Any, Any]) -> None:
    known = [settings_of(stage, stage.config(device=device)) for device in ("cuda:0", "cuda:1", "cpu", "auto")]
    first, second, cpu, auto = known
    assert first == second
    assert [config["device"] for config in (first, cpu, auto)] == ["cuda", "cpu", "auto"]


@pytest.mark.parametrize(("rotate", "turned"), [("all", 2), ("networks", 1), ("none", 0)])
def test_which_backbones_are_rotated(two_classes: Path, tmp_path: Path, rotate: Any, turned: int) -> None:  # noqa: ANN401
    backbones = ["control:pixels", "control:statistics"]
    images: dict[str, Any] = {"transformations": "mini5", "canvas": 64}
    store = embed(
        two_classes, tmp_path / "s.zarr", backbones, config=EmbedConfig(batch=4, threads=1, precision="fp32"), **images
    )
    few: dict[str, Any] = {"Cs": (1e-2,), "resamples": 0, "expert": ExpertConfig(passes=20, equal_width=0)}
    config = ProbeConfig(tasks=("kind",), heads=("linear",), rotate=rotate, redraws=2, bootstrap=100, **few)
    tables = open_tables(store, backbones)
    store.backbone(backbones[1]).facts["spec"]["control"] = False
    outcomes = probe(store, tmp_path, config, tables)
    found = [name for name in reversed(backbones) if "kind_rotation" in outcomes[name].results]
    assert found == list(reversed(backbones))[:turned]


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


def test_similarity_is_kept_until_an_input_changes(two_classes: Path, tmp_path: Path) -> None:
    names = ["control:pixels", "control:statistics"]
    images: dict[str, Any] = {"transformations": "identity,jpeg,grayscale", "canvas": 64}
    store = embed(two_classes, tmp_path / "s.zarr", names, **images)
    tables = open_tables(store, names)

    def compare(tables: list[EmbeddingTable]) -> dict[str, Any]:
        return computed(SIMILARITY, run_of(store, tmp_path, tables, similarity=AnalysisConfig()))

    def loaded(tables: list[EmbeddingTable], store: EmbeddingStore = store, **configs: object) -> dict[str, Any]:
        return kept(SIMILARITY, run_of(store, tmp_path, tables, **configs))

    assert compare(tables[:1]) == {}
    found = compare(tables)
    assert 0 < found[""]["pairs"]["control:pixels"]["control:statistics"]["cka"]["value"] < 1
    file = tmp_path / "similarity" / "similarity.json"
    before = file.stat().st_mtime_ns
    assert compare(tables) == found
    assert file.stat().st_mtime_ns == before
    assert loaded(tables) == found
    assert loaded(tables[:1]) == {}
    with pytest.raises(StaleError, match="seed") as stale:
        loaded(tables, similarity=AnalysisConfig(seed=1))
    assert stale.value.command == f"substyle stage similarity {store.path}"
    assert str(stale.value).endswith(f"; run {stale.value.command}")
    with pytest.raises(StaleError, match="other transformations"):
        loaded(open_tables(store, names, ["identity", "jpeg"]))
    embed(two_classes, tmp_path / "other.zarr", names, seed=1, **images)
    with pytest.raises(StaleError, match="another store"):
        loaded(open_tables(other := EmbeddingStore.open(tmp_path / "other.zarr"), names), other)


def test_results_of_several_processes_are_not_mixed(tmp_path: Path) -> None:
    folder = tmp_path / "probes" / "x"

    def compute(number: int) -> None:
        for _ in range(50):
            with stamp.replacing(folder) as new:
                for part in ("a", "b", "c"):
                    (new / f"{part}{number}").touch()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(compute, range(4)))
    (kept,) = {path.name[1:] for path in folder.iterdir()}
    assert {path.name for path in folder.iterdir()} == {f"a{kept}", f"b{kept}", f"c{kept}"}
    assert list(folder.parent.iterdir()) == [folder]


def test_what_a_killed_process_left_is_deleted_with_the_results(tmp_path: Path) -> None:
    outputs.claim(tmp_path / "out", tmp_path / "s.zarr", "uuid")

    def left(folder: Path) -> Path:
        return folder.with_name(f".{folder.name}.{socket.gethostname()}-1-0123abcd.tmp")

    kept = left(tmp_path / "out" / "probes" / "other")
    for folder in (tmp_path / "out" / "similarity", tmp_path / "out" / "probes" / "x", kept.with_name("other")):
        for killed in (False, True):
            with suppress(ZeroDivisionError), stamp.replacing(folder) as new:
                (new / "file").touch()
                if killed:
                    shutil.copytree(new, left(folder))
    registry.discard(tmp_path / "out", "x")
    assert sorted(path.name for path in kept.parent.iterdir()) == [kept.name, "other"]
    outputs.start_fresh(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    outputs.claim(tmp_path / "out", tmp_path / "s.zarr", "uuid")  # the folder is ours still


def test_a_note_of_another_version_is_outdated(tmp_path: Path) -> None:
    note = {"stamp": {"other": 1}, "seconds": 0.0, "files": {}}
    (tmp_path / stamp.NOTE).write_text(json.dumps(note | {"checksum": stamp.checksum(note)}))
    with pytest.raises(StaleError, match="another version"):
        stamp.note_of(tmp_path)


def test_results_that_fail_leave_the_earlier_ones(tmp_path: Path) -> None:
    folder = tmp_path / "probes" / "x"
    with stamp.replacing(folder) as new:
        (new / "before").touch()
    with pytest.raises(ZeroDivisionError), stamp.replacing(folder) as new:
        (new / "after").write_text(str(1 / len(list(new.iterdir()))))
    assert [path.name for path in folder.iterdir()] == ["before"]
    assert list(folder.parent.iterdir()) == [folder]


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


def test_results_are_computed_once_for_each_backbone(embedded: EmbeddingStore, tmp_path: Path) -> None:
    stage = Toy()
    found = computed(stage, toy(embedded, tmp_path))
    assert found == {key: {"value": 1, "input": 0} for key in BOTH}
    assert computed(stage, toy(embedded, tmp_path)) == found == kept(stage, toy(embedded, tmp_path))
    assert stage.computed_units == BOTH
    assert computed(stage, toy(embedded, tmp_path, None)) == {}  # off: nothing says its settings
    assert kept(stage, toy(embedded, tmp_path, None)) == found  # with the settings that they were computed with


@pytest.mark.parametrize("change", ["settings", "input", "a file", "the note"])
def test_outdated_results_are_refused_by_reports_and_computed_by_runs(
    embedded: EmbeddingStore, tmp_path: Path, change: str
) -> None:
    stage, value = Toy(), 1
    computed(stage, toy(embedded, tmp_path))
    folder = tmp_path / "toy" / embedded.backbone(BOTH[0]).slug
    if change == "settings":
        value = 2
    elif change == "input":
        stage.input = 5
    else:
        path = folder / ("toy.json" if change == "a file" else "complete.json")
        path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    with pytest.raises(StaleError, match=re.escape(str(folder))):
        kept(stage, toy(embedded, tmp_path, value))
    found = computed(stage, toy(embedded, tmp_path, value))
    assert found == {key: {"value": value, "input": stage.input} for key in BOTH}
    everything = change in ("settings", "input")
    assert stage.computed_units[2:] == (BOTH if everything else BOTH[:1])
    assert kept(stage, toy(embedded, tmp_path, value)) == found


@pytest.mark.parametrize("how", ["changed", "interrupted", "full"])
def test_what_fails_leaves_earlier_results(embedded: EmbeddingStore, tmp_path: Path, how: str) -> None:
    stage = Toy()
    computed(stage, toy(embedded, tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}

    def meanwhile() -> None:
        if how == "changed":
            stage.input += 1
        elif how == "interrupted":
            raise KeyboardInterrupt
        else:
            raise OSError(errno.ENOSPC, "No space left on device")

    stage.input, stage.meanwhile = 7, meanwhile
    expected: type[BaseException] = {"changed": StaleError, "interrupted": KeyboardInterrupt, "full": OSError}[how]
    with pytest.raises(expected):
        computed(stage, toy(embedded, tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_incomplete_results_are_shown_and_computed_again(embedded: EmbeddingStore, tmp_path: Path) -> None:
    stage = Toy()
    stage.complete = False
    found = computed(stage, toy(embedded, tmp_path))
    assert found == {key: {"value": 1, "input": 0} for key in BOTH}
    assert kept(stage, toy(embedded, tmp_path)) == {}
    stage.complete = True
    assert computed(stage, toy(embedded, tmp_path)) == found
    assert stage.computed_units == BOTH * 2
    assert kept(stage, toy(embedded, tmp_path)) == found


def test_embeddings_that_changed_make_results_outdated(embedded: EmbeddingStore, tmp_path: Path) -> None:
    stage = Toy()
    computed(stage, toy(embedded, tmp_path))
    fewer = run_of(embedded, tmp_path, open_tables(embedded, BOTH, ["identity"]), toy=ToyConfig())
    with pytest.raises(StaleError, match="other transformations"):
        kept(stage, fewer)
    computed(stage, fewer)
    assert stage.computed_units == BOTH * 2


def test_tables_of_other_photographs_are_opened_once(
    embedded: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def opened(store: EmbeddingStore, names: list[str], transformations: tuple[str, ...]) -> list[EmbeddingTable]:
        asked.append(names)
        return open_tables(store, names, transformations)

    run = run_of(embedded, tmp_path, open_tables(embedded, BOTH, ["identity"]))
    monkeypatch.setattr("substyle.engine.store.table.open_tables", opened)
    found = run.opened(embedded)
    assert asked == [[name] for name in BOTH]  # each with all of its photographs, whatever the others have
    assert [(name, table.backbone, table.transformations) for name, table in found.items()] == [
        (name, name, ("identity",)) for name in BOTH
    ]
    again = run.opened(EmbeddingStore.open(embedded.path))
    assert all(again[name] is table for name, table in found.items())
    assert len(asked) == len(BOTH)


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
