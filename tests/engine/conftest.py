"""What tests of several packages of the engine share."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from substyle.engine.estimate import stages
from substyle.engine.report import page
from substyle.engine.report.figures import draw_plots

_COUNTED = {name: functools.cache(getattr(stages, name)) for name in ("variants", "styles", "backbone")}


@pytest.fixture
def counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the work of a suite or a backbone once for all tests that use this: it takes most of a plan's time."""
    for name, counted in _COUNTED.items():
        monkeypatch.setattr(stages, name, counted)


@pytest.fixture(scope="module", autouse=True)
def page_alone() -> Iterator[None]:
    """Reports are written without plots, which take longer than everything else; see `figures`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "draw_plots", lambda blocks, folder: ({}, []))
        yield


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are written with plots."""
    monkeypatch.setattr(page, "draw_plots", draw_plots)
