"""What stages compute: at the same time as one after another, which probes there are, and what failures leave."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests.staged import probe, run_of

from substyle.engine import observability
from substyle.engine.config import EmbedConfig
from substyle.engine.probes import dataset
from substyle.engine.probes.config import ExpertConfig, ProbeConfig
from substyle.engine.stages import at_once, execution, stamp
from substyle.engine.stages.at_once import Places
from substyle.engine.stages.execution import computed
from substyle.engine.stages.probes import STAGE, ProbesStage
from substyle.engine.stages.stage import Run, Unit
from substyle.engine.store.store import EmbeddingStore
from substyle.engine.store.table import open_tables
from substyle.engine.study.api import embed

BACKBONES = ["control:pixels", "control:statistics"]
FEW: dict[str, Any] = {
    "Cs": (1e-2,),
    "resamples": 2,
    "bootstrap": 100,
    "expert": ExpertConfig(passes=20, equal_width=0),
}
CONFIG = ProbeConfig(tasks=("transformation", "class"), heads=("linear",), rotate="none", threads=1, **FEW)


def two_of(stage: ProbesStage, run: Run, config: ProbeConfig, outdated: Sequence[Unit]) -> Places:
    return Places(2, 1) if outdated else Places()


@pytest.fixture(scope="module")
def store(two_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    settings = EmbedConfig(batch=4, threads=1, precision="fp32")
    where = tmp_path_factory.mktemp("at_once") / "s.zarr"
    return embed(two_classes, where, BACKBONES, config=settings, transformations="identity,jpeg", canvas=64)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "places", two_of)


def table(rows: int, width: int = 1 << 10) -> Any:  # noqa: ANN401
    return SimpleNamespace(x_TND=SimpleNamespace(shape=(2, rows, width), dtype=np.dtype(np.float16)))


CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def test_each_process_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for module in (at_once, dataset):
        monkeypatch.setattr(module, "free_bytes", lambda device: 500 << 30 if device.type == "cpu" else 64 << 30)
    monkeypatch.setattr(dataset, "total_bytes", lambda device: 512 << 30 if device.type == "cpu" else 80 << 30)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    names = ["H100", "H100", "L4", "H100"]
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: names[getattr(device, "index", device)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    large = [table(1 << 13)] * 6
    assert Places.of(large, GPU, 0, alone=False) == Places(3, 2, ("0", "1", "3"))
    assert Places.of(large[:2], GPU, 0, alone=False) == Places(2, 4, ("0", "1"))
    assert Places.of(large, GPU, 0, alone=True).count == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c,GPU-d")
    assert Places.of(large, GPU, 0, alone=False).gpus == ("GPU-a", "GPU-b", "GPU-d")
    # tables that exceed the GPU are held beside it, as int8
    assert Places.of([table(60 << 20)] * 4, GPU, 0, alone=False).count == 3
    assert Places.of([table(90 << 20)] * 4, GPU, 0, alone=False).count == 2
    assert Places.of([table(250 << 20)] * 4, GPU, 0, alone=False).count == 3, "streamed from the store"


@pytest.mark.slow
def test_results_are_those_of_one_process(
    store: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = probe(store, tmp_path / "alone", CONFIG)
    monkeypatch.setattr(execution, "places", two_of)
    with observability.recording() as trace:
        found = probe(store, tmp_path / "at_once", CONFIG)
    assert list(found) == list(alone) == BACKBONES
    for name in BACKBONES:
        assert found[name].results == alone[name].results
        assert all(np.array_equal(found[name].scores[key], alone[name].scores[key]) for key in alone[name].scores)
    files = [path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*.safetensors")]
    assert len(files) == 2 * len(BACKBONES)
    for path in files:
        one, other = (load_file(tmp_path / folder / path) for folder in ("alone", "at_once"))
        assert all(np.array_equal(one[key], other[key]) for key in one.keys() | other.keys())
    assert all(span.ended.wall >= span.began.wall for span in trace.spans)
    # nothing is computed again, in any number of processes
    monkeypatch.setattr(ProbesStage, "compute", None)
    assert probe(store, tmp_path / "at_once", CONFIG).keys() == found.keys()


def unit(run: Run, name: str) -> Unit:
    return next(each for each in STAGE.units(run, CONFIG) if each.name == name)


PARENT = "SUBSTYLE_TEST_PARENT"  # variable with the id of this process


class Ends(ProbesStage):
    """Whose process ends in the middle."""

    def compute(self, run: Run, config: ProbeConfig, unit: Unit, folder: Path) -> None:
        (folder / f"by {os.getpid()}").write_text("")
        if unit.name == BACKBONES[0] and str(os.getpid()) != os.environ[PARENT]:
            os.kill(os.getpid(), signal.SIGKILL)

    def load(self, run: Run, folder: Path) -> Any:  # noqa: ANN401
        return [path.name for path in folder.glob("by *")]


@pytest.mark.slow
@pytest.mark.usefixtures("two")
def test_a_process_that_ends_is_replaced_by_this_one(
    store: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PARENT, str(os.getpid()))
    first, second = computed(Ends(), run_of(store, tmp_path, probes=CONFIG)).values()
    assert (first, second != first) == ([f"by {os.getpid()}"], True)
    assert (
        f"probes of {BACKBONES[0]}: its process has ended, as if memory ran out; once more, alone"
        in capsys.readouterr().err
    )
    assert not [path for path in tmp_path.rglob("*") if "part" in path.name]


@pytest.mark.slow
def test_controls_have_no_multitask_probe(
    store: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = ExpertConfig(passes=20, equal_width=0, doublings=1)
    small: dict[str, Any] = FEW | {"multitask_steps": 2, "widths": (8,), "expert": expert}
    config = ProbeConfig(tasks=("class", "multitask"), heads=("linear",), **small)
    outcomes = probe(store, tmp_path, config)
    assert [set(outcomes[name].results) for name in BACKBONES] == [{"class"}, {"class"}]
    outcomes = probe(store, tmp_path / "a", ProbeConfig(tasks=("multitask",), **small))
    assert [outcomes[name].results for name in BACKBONES] == [{}, {}]
    monkeypatch.setitem(store.backbone(BACKBONES[0]).facts["spec"], "control", False)
    outcomes = probe(store, tmp_path / "trained", config, open_tables(store, BACKBONES)[:1])
    assert set(outcomes[BACKBONES[0]].results) == {"class", "multitask"}
    assert outcomes[BACKBONES[0]].results["multitask"] is not None


def test_results_that_fail_leave_the_earlier_ones(tmp_path: Path) -> None:
    folder = tmp_path / "probes" / "x"
    with stamp.replacing(folder) as new:
        (new / "before").touch()
    with pytest.raises(ZeroDivisionError), stamp.replacing(folder) as new:
        (new / "after").write_text(str(1 / len(list(new.iterdir()))))
    assert [path.name for path in folder.iterdir()] == ["before"]
    assert list(folder.parent.iterdir()) == [folder]


def test_results_know_whether_embeddings_were_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `auto` the memory of the machine decides; results that are loaded say it themselves."""
    run: Any = SimpleNamespace(tables={"a": table(10)})
    config, unit = ProbeConfig(device="cpu"), Unit("a")
    assert STAGE.inputs(run, config, unit) == {}
    monkeypatch.setattr(dataset, "total_bytes", lambda device: 40_000)
    assert STAGE.inputs(run, config, unit) == {"rounded": True}
    assert STAGE.inputs(run, config, unit, {}) == {}
    assert STAGE.inputs(run, config, unit, {"rounded": True}) == {"rounded": True}
    assert STAGE.inputs(run, replace(config, expert=ExpertConfig(table="int8")), unit) == {}
    assert STAGE.stated({"rounded": True})["rounded"] is True


def test_where_units_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(at_once, "free_bytes", lambda _: 100 << 30)
    large = [table(1 << 13)] * 3

    def of(tables: list[Any], threads: int = 0) -> Places:
        return Places.of(tables, CPU, threads, alone=False)

    assert of(large) == Places(3, 2)
    assert of(large, 2) == Places(2, 1)
    assert of(large, 1) == of(large[:1]) == of([table(10)] * 3) == Places()
    # no more than keep the largest from being the last: two of 1.25 times its size
    assert of([table(1 << 14), *[table(1 << 10)] * 4]) == Places(1, 8)
    # each process holds the largest table twice, and needs some memory besides
    assert of([table(1 << 23)] * 3) == Places(1, 8)
    monkeypatch.setattr(sys, "stdout", None)
    assert of(large) == Places()


def test_probes_of_few_features_begin_before_shorter_ones() -> None:
    tables = [table(100, width) for width in (768, 64, 1280, 2048)] + [table(300, 768)]
    ordered = sorted(tables, key=at_once.longest_first)
    assert [one.x_TND.shape[1:] for one in ordered] == [(300, 768), (100, 2048), (100, 1280), (100, 64), (100, 768)]
