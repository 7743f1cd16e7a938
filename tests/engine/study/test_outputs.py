"""What a run writes and says: reports, cards and predictions; costs of settings, progress, traces and the time left."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from tests.engine.report.real import real_results

from substyle.engine import observability
from substyle.engine.cli import main
from substyle.engine.embedding.preflight import SplitCounts
from substyle.engine.study import outputs, runner
from substyle.engine.study import schedule as module
from substyle.engine.study.file import load_study
from substyle.engine.study.hub import write_card
from substyle.engine.study.predict import write_predictions
from substyle.engine.study.quick import costly
from substyle.engine.study.schedule import EMBED, REPORT, Schedule
from substyle.files import UnsafeFileError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder with a report, and files of the user beside it."""
    for name in ("out/README.md", "out/tables/mine.csv", "out/figures/mine/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    runner.save_report(real_results(), tmp_path / "out", None)
    return tmp_path / "out"


def test_a_report_replaces_its_own_files_alone(out: Path) -> None:
    per_class = out / "tables" / "per_transformation.csv"
    overview, mine = out / "tables" / "overview.csv", [path for path in out.rglob("*") if "mine" in path.name]
    assert per_class.is_file()
    overview.write_text("edited")
    results = real_results("a")
    for backbone in results["backbones"].values():
        backbone.clear()
    runner.save_report(results, out, None)
    assert not per_class.exists()
    assert overview.read_text() == "edited"
    assert (out / "README.md").read_text() == "mine"
    assert all(path.exists() for path in mine)


def test_a_full_disk_leaves_the_old_report(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(out)
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr("substyle.engine.report.page.write_tables", full)
    with pytest.raises(OSError, match="No space left"):
        runner.save_report(real_results("a"), out, None)
    assert contents(out) == before


def test_files_of_others_are_not_replaced(out: Path) -> None:
    with pytest.raises(UnsafeFileError, match=r"README\.md: would be replaced, but substyle has not written it"):
        write_card(out)
    (out / "README.md").unlink()
    write_card(out)
    write_card(out)
    runner.save_report(real_results(), out, None)  # other results than those of the card
    assert not (out / "README.md").exists()
    (out / "results.json").unlink()
    (out / ".substyle-files.json").unlink()
    before = contents(out)
    with pytest.raises(UnsafeFileError, match="would be replaced"):
        runner.save_report(real_results(), out, None)
    assert contents(out) == before


def test_an_edited_card_is_not_replaced(out: Path) -> None:
    (out / "README.md").unlink()
    write_card(out)
    write_card(out)
    (out / "README.md").write_text("my own words about this model")
    with pytest.raises(UnsafeFileError, match=r"README\.md: would be replaced, but has been edited"):
        write_card(out)
    assert (out / "README.md").read_text() == "my own words about this model"


CLASSES = [{"label": "cat", "probability": 0.75}, {"label": "dog", "probability": 0.25}]
ANSWER = {
    "predictions": [
        {"key": "a,b.jpg", "outputs": {"class": CLASSES}},
        {"key": "c.jpg", "outputs": {"class": [{"label": "dog", "probability": 1.0}], "transformation": []}},
    ]
}
ROWS = [("a,b.jpg", "class", 1, "cat", 0.75), ("a,b.jpg", "class", 2, "dog", 0.25), ("c.jpg", "class", 1, "dog", 1.0)]


def test_predictions_are_written(tmp_path: Path) -> None:
    write_predictions(ANSWER, tmp_path / "new" / "p.parquet")
    assert [tuple(row.values()) for row in pq.read_table(tmp_path / "new" / "p.parquet").to_pylist()] == ROWS
    write_predictions(ANSWER, tmp_path / "p.csv")
    frame = pd.read_csv(tmp_path / "p.csv")
    assert list(frame) == ["key", "output", "rank", "label", "probability"]
    assert list(frame.itertuples(index=False, name=None)) == ROWS


def test_another_format_is_refused_before_anything_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "nothing.safetensors", ".", "--out", "p.xlsx"]) == 2
    assert ".csv or .parquet" in capsys.readouterr().err


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """Time in seconds; the cache is empty."""
    now = [100.0]
    monkeypatch.setenv("SUBSTYLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def ran(clock: list[float], schedule: Schedule, **seconds: float) -> None:
    """A run whose parts take so many seconds."""
    for part, took in seconds.items():
        with schedule.during(part):
            clock[0] += took
            schedule.keep()


def test_parts_take_as_long_per_embedding_as_in_the_last_run(clock: list[float]) -> None:
    ran(clock, Schedule(["a", "b"], ["probes", "analysis"], 100), embed=50.0, probes=200.0, analysis=20.0, report=10.0)
    again = Schedule(["b", "a"], ["probes", "analysis"], 200)
    with again.during(EMBED):
        assert again.left("prepare", 3.0) == "whole run: 09:20 left"  # 100 + 400 + 40 + 20
        clock[0] += 30.0
        assert again.left("prepare", 3.0) == "whole run: 08:50 left"
        assert again.left("embed", 7.0) == "whole run: 07:47 left"  # that of the bar
    with again.during("probes"):
        clock[0] += 100.0
        assert again.left("probes a", 1.0) == "whole run: 06:00 left"
        clock[0] += 400.0
        assert again.left("probes b", 1.0) == "whole run: more than 01:00 left"
    with again.during(REPORT):
        assert again.left("gallery", None) == "whole run: 00:20 left"


def test_the_trace_is_one_that_viewers_open() -> None:
    with observability.recording() as recorded, observability.span("embed", "decode", 2):
        pass
    (event,) = json.loads(recorded.to_json())["traceEvents"]
    assert (event["ph"], event["name"], event["cat"], event["args"]["items"]) == ("X", "decode", "embed", 2)
    assert event["ts"] >= 0
    assert event["dur"] >= 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stage_shows_what_it_does_between_items(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """A backbone may be prepared for minutes before the first item is finished."""
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(observability, "_LINE_EVERY_S", 0.0)
    with observability.stage("prepare", 2, "backbones") as bar:
        bar.note("gate: bf16, 16 of 124 pictures")
        assert "16 of 124 pictures" in out.getvalue()


def test_reports_of_versions_without_a_list_are_replaced(out: Path) -> None:
    (out / ".substyle-files.json").unlink()
    runner.save_report(real_results(), out, None)
    assert (out / "README.md").read_text() == "mine"


def test_fresh_leaves_logs_and_stores_that_lie_in_a_folder(tmp_path: Path) -> None:
    for name in ("wandb/run.txt", "tensorboard/events", "store.zarr/mine"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    outputs.start_fresh(tmp_path)
    assert contents(tmp_path) == before
