"""Reports of a run that goes on, and of one that has nothing to compute."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from tests.engine.probes.conftest import make_table  # noqa: F401 (a fixture)

from substyle.engine import observability
from substyle.engine.cli import main
from substyle.engine.embedding.plan import PendingShards
from substyle.engine.stages.registry import stage as stage_of
from substyle.engine.store.table import EmbeddingTable
from substyle.engine.study import provisional
from substyle.errors import SubstyleError

STUDY = """
name = "small"
suite = "identity,gaussian_blur,grayscale,jpeg"
canvas = 64
backbones = ["control:pixels", "control:statistics"]
gallery = 1
bootstrap = 100
[probes]
mlp_steps = 10
widths = [32]
mlp_learning_rates = [1e-2]
resamples = 2
redraws = 2
tasks = ["transformation", "class"]
[probes.expert]
doublings = 1
"""


def runs(tmp_path: Path, photographs: Path, more: str = "") -> Callable[[], int]:
    (tmp_path / "small.toml").write_text(STUDY + more)
    words = ["run", str(tmp_path / "small.toml"), "--images", str(photographs), "--out", str(tmp_path / "out")]
    return lambda: main(words)


def stopped(*_: Any) -> None:  # noqa: ANN401
    raise KeyboardInterrupt


def test_a_run_reports_before_it_ends_and_a_second_one_writes_nothing(
    tmp_path: Path, two_classes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = runs(tmp_path, two_classes), tmp_path / "out"
    page, results = out / "report.html", out / "results.json"
    with monkeypatch.context() as patched:
        patched.setattr(type(stage_of("analysis")), "compute", stopped)
        assert run() == 130
    early = page.read_text()
    assert "small (provisional)" in early
    assert "Linear probes of 40 photographs" in early
    assert "Pending: probes, few shot, analysis, similarity" in early.replace("\n", " ")
    assert not results.exists()
    assert not any((out / name).exists() for name in ("analysis/complete.json", "probes/complete.json"))
    assert "provisional report" in capsys.readouterr().err

    assert run() == 0
    assert "provisional report" not in capsys.readouterr().err  # probes of the first run were kept
    assert "provisional" not in page.read_text()
    found = json.loads(results.read_text())
    assert "wall_seconds" not in found["throughput"]  # parts of it are of the first run
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and "store" not in str(path)}
    assert run() == 0
    own = {page, results, *(out / "tables").iterdir()}
    assert len(own) > 4
    assert {path.stat().st_mtime_ns == times[path] for path in own} == {True}

    (out / "tables" / "overview.csv").write_text("edited")
    page.unlink()
    assert run() == 0
    assert page.is_file()
    results.write_text(results.read_text().replace('"name": "small"', '"name": "other"'))
    assert run() == 0
    assert json.loads(results.read_text())["name"] == "small"


def test_the_first_report_does_not_wait_for_all_photographs(
    tmp_path: Path, two_classes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, page = runs(tmp_path, two_classes, "[embed]\nshard_rows = 4\nbatch = 4"), tmp_path / "out" / "report.html"
    monkeypatch.setattr(provisional, "PHOTOGRAPHS", 16)
    with monkeypatch.context() as patched:
        patched.setattr(type(stage_of("analysis")), "compute", stopped)
        assert run() == 130
    assert "Linear probes of 16 of the 40 photographs" in page.read_text()
    assert "Pending: embeddings of the others, probes" in page.read_text()
    said = capsys.readouterr().err
    assert "embed:  40% 128/320" in said
    assert said.index("embed:  40% 128/320") < said.index("provisional report") < said.index("embed: 100% 320/320")
    assert run() == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["images"] == 40


def test_a_report_that_cannot_be_made_early_stops_nothing(
    tmp_path: Path, two_classes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(provisional, "_few", Mock(side_effect=SubstyleError("no test photographs")))
    monkeypatch.setenv("SUBSTYLE_LOG", "info")
    assert runs(tmp_path, two_classes)() == 0
    assert "provisional" not in (tmp_path / "out" / "report.html").read_text()
    assert "provisional report:" not in capsys.readouterr().err


def test_damaged_results_of_an_interrupted_run_are_recomputed(
    tmp_path: Path, two_classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = runs(tmp_path, two_classes), tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(type(stage_of("analysis")), "compute", stopped)
        assert run() == 130
    for path in (out / "probes").glob("*/complete.json"):
        path.write_text("{}")
    monkeypatch.setattr(provisional, "_EVERY_S", 0.0)  # a report after each stage
    assert run() == 0
    assert "provisional" not in (out / "report.html").read_text()


def test_a_few_photographs_of_which_none_is_valid_stop_nothing(
    tmp_path: Path, two_classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs = tmp_path / "photographs"
    paths = sorted(path.relative_to(two_classes) for path in two_classes.rglob("*.jpg"))
    for i, path in enumerate(paths):
        (photographs / path).parent.mkdir(parents=True, exist_ok=True)
        (photographs / path).write_bytes(b"no" if i < 4 else (two_classes / path).read_bytes())
    monkeypatch.setattr(provisional, "PHOTOGRAPHS", 4)
    assert runs(tmp_path, photographs, "[embed]\nshard_rows = 4\nbatch = 4")() == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["images"] == 36


@pytest.mark.parametrize("images", [1, 7, 20, 60, 1000])
def test_a_few_shards_of_all_parts_come_first(images: int) -> None:
    rng = np.random.default_rng(images)
    sizes, lacks = rng.integers(1, 9, 11), rng.random((11, 2, 3)) < 0.7
    shards, total = np.sort(rng.choice(50, 11, replace=False)), 6 * int(sizes.sum()) + 90
    missing = int((sizes[:, None, None] * lacks).sum())
    todo = PendingShards(200, 50, ("a", "b", "c"), shards, sizes, lacks, total, total - missing)
    few, rest = todo.split(images)
    assert sorted([*few.shard_W, *rest.shard_W]) == shards.tolist()
    assert few.sizes | rest.sizes == todo.sizes
    assert {**few.lacking, **rest.lacking} == todo.lacking
    assert (few.total, few.done) == (total, todo.done)
    of_rest = int((rest.size_W[:, None, None] * rest.lacking_WBT).sum())
    assert rest.total - rest.done == of_rest
    assert len(few.shard_W) == min(-(-images * 11 // int(sizes.sum())), 11)
    assert few.shard_W[0] == shards[0]
    assert len(few.shard_W) < 2 or np.diff(np.searchsorted(shards, few.shard_W)).max() <= -(-11 // len(few.shard_W))


def test_the_total_is_that_of_all_stages(tmp_path: Path, two_classes: Path) -> None:
    assert runs(tmp_path, two_classes)() == 0
    out = tmp_path / "out"
    spent = json.loads((out / "results.json").read_text())["throughput"]
    of_stages = [
        json.loads(path.read_text())["seconds"] for path in out.rglob("complete.json") if "gallery" not in str(path)
    ]
    assert len(of_stages) > 4
    assert spent["total_seconds"] == pytest.approx(spent["embed_seconds"] + sum(of_stages), abs=0.05)
    assert spent["total_seconds"] <= spent["wall_seconds"]
    assert "Whole run" in (out / "report.html").read_text()


@pytest.mark.parametrize("images", [provisional.PHOTOGRAPHS - 1, 3 * provisional.PHOTOGRAPHS])
def test_few_photographs_keep_their_facts(make_table: Callable[..., EmbeddingTable], images: int) -> None:  # noqa: F811
    first_N = np.arange(images) // 2 * 2
    content = np.random.default_rng(0).integers(1, 1 << 60, (images, 2), np.uint64)
    table = make_table(images, first_N=first_N, content_N2=content)
    few = provisional._few(table, 3)
    n = [table.keys.index(key) for key in few.keys]
    assert len(set(n)) == min(images, provisional.PHOTOGRAPHS)
    np.testing.assert_array_equal(few.x_TND, np.asarray(table.x_TND)[:, n])
    np.testing.assert_array_equal(few.split_N, table.split_N[n])
    np.testing.assert_array_equal(few.label_N, table.label_N[n])
    np.testing.assert_array_equal(few.content_N2, content[n])
    assert few.first_N is not None
    together = first_N[n][:, None] == first_N[n]
    np.testing.assert_array_equal(few.first_N[:, None] == few.first_N, together)
    assert (few.first_N <= np.arange(len(n))).all()


def test_a_bar_with_an_estimate_ends_at_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    for done in (3, 12):
        with observability.stage("probes", 10, "steps", estimated=True) as bar:
            for _ in range(done):
                bar.advance()
        assert f"probes: 100% {done}/{done}" in capsys.readouterr().err
    with observability.stage("embed", 10, "steps") as bar:
        bar.advance()
    assert "embed:  10% 1/10" in capsys.readouterr().err


def test_a_bar_in_a_terminal_goes_on_between_items(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = threading.Event()
    monkeypatch.setattr(observability, "_TICK_S", 0.001)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with observability.stage("probes", 10, "steps") as bar:
        monkeypatch.setattr(bar, "refresh", drawn.set)
        assert drawn.wait(60)
