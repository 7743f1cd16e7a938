"""Reports of a run that goes on, and of one that has nothing to compute."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engine.probes.conftest import make_table  # noqa: F401 (a fixture)

from substyle.engine import observability
from substyle.engine.cli import main
from substyle.engine.stages.registry import stage as stage_of
from substyle.engine.store.table import EmbeddingTable
from substyle.engine.study import provisional

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


def runs(tmp_path: Path, photographs: Path) -> Callable[[], int]:
    (tmp_path / "small.toml").write_text(STUDY)
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
