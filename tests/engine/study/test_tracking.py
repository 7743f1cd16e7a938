"""Experiment trackers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tests.engine.report.real import BACKBONE, real_results

from substyle.engine.config import TrackConfig
from substyle.engine.observability import stage
from substyle.engine.stages.results import validate_results
from substyle.engine.study import tracking
from substyle.engine.study.report import all_tables
from substyle.engine.study.tracking import tracked
from substyle.errors import ConfigError, MissingError


def study(to: str, out: Path, results: Mapping[str, Any]) -> None:
    out.mkdir(exist_ok=True)
    (out / "report.html").write_text("<p>report</p>")
    with tracked(TrackConfig(to=to, project="photos"), "run 1", {"suite": "substance31"}, out) as finished:
        with stage("embed", 40, "images", quiet=True) as bar:
            for _ in range(4):
                bar.advance(10)
        document = validate_results(results)
        finished(document, lambda: all_tables(document))


class Recorder(ModuleType):
    """Stands in for a tracker."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__("trackio")
        self.__spec__ = SimpleNamespace()  # type: ignore[assignment]
        self.fails, self.logged, self.files, self.ended = fails, {}, [], False
        self.name = "run 1"
        self.Table = SimpleNamespace

    def init(self, **_: object) -> Recorder:
        return self

    def log(self, values: dict[str, Any]) -> None:
        if self.fails:
            raise OSError("no network")
        self.logged |= values

    def log_artifact(self, path: Path, **_: object) -> None:
        self.files.append(path)

    def finish(self) -> None:
        self.ended = True


def test_progress_scores_tables_and_report_are_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Recorder()
    monkeypatch.setitem(sys.modules, "trackio", library)
    results = real_results()
    study("trackio", tmp_path, results)
    assert (library.logged["embed/done"], library.logged["embed/total"]) == (40, 40)
    assert library.logged["embed/per_second"] > 0
    accuracy = results["backbones"][BACKBONE]["transformation"]["linear"]["accuracy"]["value"]
    assert library.logged[f"{BACKBONE}/linear/transformation"] == accuracy
    assert library.logged["tables/overview"].data[0].keys() >= {"backbone", "transformation", "transformation_low"}
    assert (library.files, library.ended) == ([tmp_path / "report.html"], True)


def test_a_tracker_that_fails_warns_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", Recorder(fails=True))
    study("trackio", tmp_path, real_results())
    assert capsys.readouterr().err.count("warning: trackio failed") == 1
    monkeypatch.setattr(Recorder, "init", lambda self, **_: sys.exit(3))
    study("trackio", tmp_path, real_results())
    assert "SystemExit(3)" in capsys.readouterr().err


def test_a_run_that_fails_is_not_shown_as_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = []

    def finish(exit_code: int) -> None:
        codes.append(exit_code)

    library = ModuleType("wandb")
    library.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    run = SimpleNamespace(finish=finish, log=lambda values: None)
    monkeypatch.setattr(library, "init", lambda **_: run, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", library)
    with tracked(TrackConfig(to="wandb"), "run 1", {}, tmp_path):
        pass
    with pytest.raises(OSError, match="full"), tracked(TrackConfig(to="wandb"), "run 2", {}, tmp_path):
        raise OSError("disk is full")
    assert codes == [0, 1]


def test_unknown_and_missing_trackers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"track\.to"):
        TrackConfig(to="excel")  # type: ignore[arg-type]
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="pip install 'mlflow'"):
        study("mlflow", tmp_path, {})


def test_metrics_have_names_that_mlflow_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[str, float] = {}
    nothing = dict.fromkeys(("set_experiment", "start_run", "log_params"), lambda *_, **__: None)
    library = SimpleNamespace(**nothing, log_metrics=lambda values, step: logged.update(values))
    monkeypatch.setitem(sys.modules, "mlflow", library)
    tracker = tracking._mlflow(TrackConfig(to="mlflow"), "run 1", {}, tmp_path)
    tracker.log({"mae:base@layer=3+11,pool=avg/linear/transformation": 0.5}, 1)
    assert logged == {"mae:base layer 3 11 pool avg/linear/transformation": 0.5}
