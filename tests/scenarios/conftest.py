from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.scenarios.scene import Scene


@pytest.fixture
def pages() -> None:
    """Write reports in addition to results.json."""


@pytest.fixture
def processes() -> None:
    """Run some commands in other processes, which embed all numbers of `control:pixels`."""


@pytest.fixture
def empty(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    one_thread: None,
    private_cache: Path,
) -> Iterator[Scene]:
    """A folder without photographs."""
    del one_thread
    if "pages" not in request.fixturenames:  # they take longer than everything else, and show what results.json says
        monkeypatch.setattr("substyle.engine.study.runner.write_report", lambda results, out, **_: None)
    monkeypatch.setattr("substyle.engine.report.page.draw_plots", lambda blocks, folder: ({}, []))
    if "processes" not in request.fixturenames:
        # 48 numbers: probes of 768 take most of the time of a run; a cache of their own, since it tells the width
        monkeypatch.setattr("substyle.engine.backbones.families.controls._GRID", 4)
        monkeypatch.setenv("SUBSTYLE_CACHE", str(private_cache.with_name("cache-of-scenarios")))
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # no machine is switched off here
    monkeypatch.setattr(
        "substyle.pipelines.transforms.registry._loaded", []
    )  # workers of later tests load what is there
    monkeypatch.setenv("SUBSTYLE_ALLOW_PLUGINS", "1")
    monkeypatch.chdir(tmp_path)
    made = Scene(tmp_path, capsys)
    made.new_process()
    yield made
    made.new_process()


@pytest.fixture
def scene(empty: Scene) -> Scene:
    """18 photographs of two classes in split folders."""
    empty.add_all()
    return empty
